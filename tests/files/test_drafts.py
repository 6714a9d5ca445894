"""Drafts and shelves: what killed processes left is removed, what a user has is not, whatever its name."""

import pytest

from oialr_peft.files import draft, replace_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("oialr-weights-final", "model.safetensors"),  # no name of ours
        ("oialr-weights-0123abcd", "best.pt"),
        ("oialr-weights-0123abcd", "deep/model.safetensors"),
    ],
)
def test_a_users_folder_stays_whatever_its_name(name, held, tmp_path):
    (file := tmp_path / name / held).parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    replace_file(tmp_path / "report.html", b"page")
    assert file.read_bytes() == b"mine"


def test_a_shelf_that_nothing_names_is_removed_and_one_that_config_names_is_not(tmp_path):
    for letter in "ab":
        (tmp_path / f"oialr-weights-{letter * 8}").mkdir()
        (tmp_path / f"oialr-weights-{letter * 8}" / "model-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"files": {"oialr-weights-bbbbbbbb/model.safetensors": ""}}')
    replace_file(tmp_path / "report.html", b"page")
    assert names(tmp_path) == ["config.json", "oialr-weights-bbbbbbbb", "report.html"]


@pytest.mark.skipif(draft.fcntl is None, reason="needs locks")
def test_a_draft_that_another_process_took_for_a_leftover_is_made_anew(tmp_path, monkeypatch):
    """The other one comes after the draft was made and before it is locked."""
    lock, others = draft._lock, [1, 2]

    def late(folder):
        if others:
            others.pop()
            draft.remove_left_overs(tmp_path)
        return lock(folder)

    monkeypatch.setattr(draft, "_lock", late)
    replace_file(tmp_path / "x.json", b"{}")
    assert names(tmp_path) == ["x.json"]
