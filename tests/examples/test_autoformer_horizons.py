"""The four horizons: what was run is not run again, rows that were not are marked, and the card is what there is."""

import json
import sys
from pathlib import Path

import horizons
import horizons_card
import pytest

from tests.helpers.examples import ROOT


CARD = ROOT / "model_cards" / "autoformer-horizons"


def record(width: int, horizon: int, method: str, seed: int) -> dict:
    figures = {"test_mse": 0.25 + seed / 100, "test_mae": 0.3, "trainable_percent": 10.0, "compressed_bytes": 1000}
    surroundings = {"hardware": {"cores": 1, "machine": "x", "device": "cpu"}, "versions": {"torch": "2"}}
    return {"width": width, "horizon": horizon, "method": method, "seed": seed, **figures, **surroundings}


def test_the_card_is_what_the_results_give() -> None:
    assert horizons.render(CARD, horizons.METHODS) == (CARD / "README.md").read_text()


def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple] = []

    def train(data: str, width: int, horizon: int, method: str, seed: int, work: Path) -> dict:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append((horizon, method, seed))
        return record(width, horizon, method, seed)

    errors = {"mse": 0.2, "mae": 0.3}
    monkeypatch.setattr(horizons, "train", train)
    monkeypatch.setattr(horizons, "trivial_rows", lambda data, horizon: {"context mean": errors})
    monkeypatch.setattr(
        sys, "argv", ["horizons.py", "--data", "x.csv", "--horizons", "96", "720", "--output", str(tmp_path)]
    )
    with pytest.raises(KeyboardInterrupt):
        horizons.main()
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 4
    monkeypatch.setattr(horizons, "train", lambda data, *key: made.append(key[1:4]) or record(*key[:4]))
    horizons.main()
    assert len(made) == len(set(made)) == 2 * 3 * 3
    text = (tmp_path / "README.md").read_text()
    assert "| dense | 0.2600 ± 0.0100 | 0.3000 | 10.0 % | 1,000 | 0.2500, 0.2600, 0.2700 |" in text
    assert "OIALR, tuned: 1.000 of dense (within the pooled spread, 0.0100), 10% trains at the end, file" in text
    assert text.count("not run yet") == 2 * 3 + 4 * 3  # two horizons, and the paper's width


def test_a_comparison_is_of_the_seeds_that_both_have() -> None:
    runs = [record(128, 720, "dense", seed) for seed in (0, 1)] + [record(128, 720, "OIALR, tuned", 0)]
    results = {"runs": runs, "trivial": {"720": {"context mean": {"mse": 0.2}}}}
    found = horizons_card.section(results, 128, 720, ("dense", "OIALR, tuned"))
    assert found["rows"]["dense"]["errors"] == [0.25, 0.26]
    assert found["lines"][0].startswith("OIALR, tuned: 1.000 of dense")
    assert "1 seed(s) of both, a pointer and no result" in found["lines"][0]
    assert horizons_card.beside_dense({"runs": runs[:2], "trivial": {}}, 128, 720, "OIALR, tuned") is None


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "reached"),
        ({"mean": 0.262}, "reached"),  # within the pooled spread
        ({"mean": 0.272}, "missed by error"),
        ({"trainable_percent": 21.0, "compressed_bytes": 510}, "missed by share in training, file"),
        ({"seeds": 2}, "reached; 2 seed(s) of both, a pointer"),
    ],
)
def test_a_verdict_names_what_misses(changed: dict, word: str) -> None:
    dense = {"mean": 0.26, "spread": 0.01, "trainable_percent": 100.0, "compressed_bytes": 1000, "seeds": 3}
    row = {**dense, "trainable_percent": 10.0, "compressed_bytes": 400, **changed}
    assert f"dense's: {word}" in horizons_card.verdict("tuned", row, dense)


def test_flags_are_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from run import Choice
    from settings import Settings
    from transformers import HfArgumentParser

    seen: list[list[str]] = []
    monkeypatch.setattr(horizons.subprocess, "run", lambda command, **_: seen.append(command[2:]) or 1 / 0)
    for horizon, rank in ((96, 0.25), (720, 0.2)):
        for method in horizons.METHODS:
            with pytest.raises(ZeroDivisionError):
                horizons.train("x.csv", 128, horizon, method, 0, tmp_path)
            settings, choice = HfArgumentParser([Settings, Choice]).parse_args_into_dataclasses(seen[-1])
            assert choice.resume
            assert (settings.epochs, settings.patience, settings.learning_rate) == (10, 3, 1e-4)
        assert (settings.delay, settings.rank, settings.freeze_bases) == (300, rank, 900)
