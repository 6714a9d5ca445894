"""kill -9 at any moment of a save: the folder loads as what it was or as what is saved, and nothing is left over."""

import random
from pathlib import Path

import pytest

from .saves import OLDS, SAVES, everything, killed_at, loaded, prepared, same, trained


KILLS = 200  # of each kind of save, shared out over what it is saved over and where


def kill_often(kind: str, old: str, folder: Path, tmp_path: Path, kills: int) -> int:
    """Kill a save of `kind` over `old` at evenly spread moments; how often."""
    model, save = trained(2, 0.4), SAVES[kind]
    source, clean = tmp_path / f"{kind}-{old}", tmp_path / f"{kind}-{old}-saved"
    source.mkdir()
    OLDS[old](source)
    prepared(clean, source)
    save(model, clean)
    before, after, names = loaded(source), loaded(clean), everything(clean).keys()
    card = {everything(at).get("README.md") for at in (source, clean)}
    prepared(folder, source)
    moments = killed_at(0, lambda: save(model, folder), folder)
    chance = random.Random(f"{kind}{old}")
    chosen = range(1, moments + 1) if kills >= moments else sorted(chance.sample(range(1, moments + 1), kills))
    for moment in [*chosen, *(chance.randint(1, moments) for _ in range(kills - moments))]:
        prepared(folder, source)
        assert killed_at(moment, lambda: save(model, folder), folder) == moment
        found = loaded(folder)
        assert same(found, before) or same(found, after), f"{kind} over {old}, killed at {moment} of {moments}"
        assert kind != "card" or everything(folder).get("README.md") in card
        save(model, folder)
        assert same(loaded(folder), after)
        assert everything(folder).keys() == names, f"{kind} over {old}, killed at {moment} of {moments}"
    return kills


@pytest.mark.parametrize("old", OLDS)
@pytest.mark.parametrize("kind", SAVES)
def test_a_few_kills(kind, old, tmp_path):
    assert kill_often(kind, old, tmp_path / "folder", tmp_path, kills=3) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("old", OLDS)
@pytest.mark.parametrize("kind", SAVES)
def test_two_hundred_kills_of_each_kind(kind, old, tmp_path, mounted):
    share = KILLS // len(OLDS) // 2
    done = kill_often(kind, old, tmp_path / "folder", tmp_path, share)
    other = tmp_path / "elsewhere"
    other.mkdir()
    done += kill_often(kind, old, mounted(4096) / "folder", other, share)
    assert done == 2 * share
