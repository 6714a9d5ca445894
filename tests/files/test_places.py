"""Where a save may go: mount points, links, folders under read-only ones; where it may not; and a full disk."""

import os
import subprocess
from pathlib import Path

import pytest

from oialr_peft.files import replace_file
from oialr_peft.training.trace import Trace

from .saves import OLDS, SAVES, everything, loaded, prepared, same, trained


WEIGHTS = ["adapter", "compressed"]


@pytest.mark.parametrize("old", OLDS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_on_a_mount_point_and_through_a_link_to_one(kind, old, mounted, tmp_path):
    folder = mounted(4096)
    OLDS[old](folder)
    SAVES[kind](trained(2, 0.4), folder)
    SAVES[kind](trained(2, 0.4), tmp_path / "plain")
    assert same(loaded(folder), loaded(tmp_path / "plain"))
    (tmp_path / "link").symlink_to(folder)
    SAVES[kind](trained(3, 0.4), tmp_path / "link")
    SAVES[kind](trained(3, 0.4), tmp_path / "plain")
    assert same(loaded(folder), loaded(tmp_path / "plain"))
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_link_to_nothing_gets_its_folder(kind, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "folder")
    SAVES[kind](trained(2, 0.4), tmp_path / "link")
    assert loaded(tmp_path / "new" / "folder") is not None


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_parent_may_be_read_only(kind, mounted):
    parent = mounted(4096)
    folder = parent / "folder"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(parent)], check=True)
    try:
        SAVES[kind](trained(2, 0.4), folder)
        assert loaded(folder) is not None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_read_only_folder_is_refused_with_words(kind, mounted):
    folder = mounted(64, read_only=True)
    with pytest.raises(OSError, match=r"nothing can be written there .* nothing is lost.*mount"):
        SAVES[kind](trained(2, 0.4), folder)


@pytest.mark.parametrize("old", OLDS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_full_disk_leaves_the_old_or_the_new(kind, old, mounted, tmp_path):
    source, clean = tmp_path / "source", tmp_path / "clean"
    source.mkdir()
    OLDS[old](source)
    model = trained(2, 0.4)
    prepared(clean, source)
    SAVES[kind](model, clean)
    before, after = loaded(source), loaded(clean)
    pages = sum(-(-len(data) // 4096) + 1 for data in everything(source).values())
    outcomes = set()
    for room in (4, 24, 60, 100, 140, 180, 240, 400):
        folder = mounted(4 * pages + room) / "folder"
        prepared(folder, source)
        message = refusal(kind, model, folder)
        outcomes.add("saved" if message is None else "refused")
        assert message is None or "nothing was saved" in message
        assert same(loaded(folder), after if message is None else before)
        assert message is None or everything(folder) == everything(source)
    assert outcomes == {"saved", "refused"}


def refusal(kind, model, folder) -> str | None:
    try:
        SAVES[kind](model, folder)
    except OSError as error:
        return str(error)
    return None


def fill(path) -> None:
    with open(path, "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.parametrize("kind", SAVES)
def test_a_card_that_does_not_fit_stays_as_it_was_and_costs_nothing(kind, mounted, monkeypatch):
    folder = mounted(2048)
    readme = b"---\ntags: [mine]\n---\n<!-- oialr_peft: begin --><!-- oialr_peft: end -->" + b"My words.\n" * 10_000
    (folder / "README.md").write_bytes(readme)
    model = trained(2, 0.4)
    from oialr_peft.cards import readme as module

    original = module.replace_file

    def fill_first(path, data):
        with pytest.raises(OSError, match="No space"):
            fill(folder / "filler")
        original(path, data)

    monkeypatch.setattr(module, "replace_file", fill_first)
    with pytest.warns(UserWarning, match="left as it was|left as it is"):
        SAVES[kind](model, folder)
    assert (folder / "README.md").read_bytes() == readme
    assert (kind == "card") == (loaded(folder) is None)


def test_a_readme_that_is_a_link_is_not_written_through(tmp_path):
    other = tmp_path / "theirs.md"
    other.write_text("<!-- oialr_peft: begin --><!-- oialr_peft: end -->")
    for kind in SAVES:
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "README.md").symlink_to(other)
        SAVES[kind](trained(2, 0.4), folder)
        assert other.read_text() == "<!-- oialr_peft: begin --><!-- oialr_peft: end -->"
        assert "Ranks and size" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(
    "readme",
    [b"---\ntags: 5\n---\n", b"---\nbase_model: {a: 1}\n---\n", b"\xff\xfe\x00words", b"---\ntags: [a\n---\n"],
    ids=["tags", "base", "not UTF-8", "broken"],
)
def test_an_odd_readme_never_costs_the_weights(kind, readme, tmp_path):
    (tmp_path / "README.md").write_bytes(readme)
    with pytest.warns(UserWarning, match="left as it is"):
        SAVES[kind](trained(2, 0.4), tmp_path)
    assert loaded(tmp_path) is not None
    assert (tmp_path / "README.md").read_bytes() == readme


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_files_get_the_users_mode(tmp_path):
    before = os.umask(0o027)
    try:
        for kind in WEIGHTS:
            SAVES[kind](trained(2, 0.4), tmp_path / kind)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {0o640}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not run: no pipes here")
def test_a_pipe_and_a_link_to_one_are_left_by_a_trace(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        Trace(tmp_path / name, new=True)
        assert (tmp_path / name).is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="not run: no pseudo terminals here")
def test_a_device_is_written_to_and_not_replaced():
    controller, terminal = os.openpty()
    try:
        replace_file(os.ttyname(terminal), b"a page")
        assert os.read(controller, 100) == b"a page"
        assert Path(os.ttyname(terminal)).is_char_device()
    finally:
        os.close(controller)
        os.close(terminal)
