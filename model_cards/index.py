"""Writes the index of the cards from their results files: `python index.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


sys.path += [
    str(Path(__file__).resolve().parents[1] / "examples" / name)
    for name in ("forecast", "vision", "stability", "autoformer")
]
import card as stability
import forecast_card
import horizons_card
import vision_card


HERE = Path(__file__).resolve().parent


FORECASTERS = {"patchtst": "PatchTST, width 32", "patchtsmixer": "PatchTSMixer, width 32"}
PICTURES = {
    "minivit-cifar10": "mini-ViT, width 96",
    "resnet-cifar10": "ResNet of six blocks, widths 32 to 128",
    "resnet-wide-cifar10": "the same, widths 64 to 256",
    "minivit-paper-cifar10": "mini-ViT, the paper's width of 768",
}


def start(folder: str, what: str) -> dict[str, Any]:
    """What a line has before there are figures: its name, linked where there is a card."""
    card = f"{folder}/README.md"
    return {"what": f"[{what}]({card})" if (HERE / card).exists() else what, "dense": None}


def read(folder: str) -> dict[str, Any] | None:
    """The results of a card's folder, if it has been run."""
    path = HERE / folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def forecasts() -> list[dict[str, Any]]:
    """A line for each model, series and horizon: OIALR in the form that a size takes by default beside dense."""
    lines = []
    for folder, name in FORECASTERS.items():
        for label in forecast_card.MODELS[folder]:
            case = forecast_card.case_of(HERE / folder, label)
            line = {**start(folder, name), "data": case["title"]}
            for row in (row for row in case["rows"] if row["method"] == "longer"):
                figures = {name: row[name] for name in ("held_share", "trained_share")}
                trivial = {"trivial": case["trivial"]["linear map"]["mse"], "seeds": len(row["errors"])}
                line |= {**figures, **trivial, "dense": row["dense"], "oialr": row["mean"]}
            lines.append(line)
    return lines


def autoformer() -> dict[str, Any]:
    """The line of the Autoformer's card."""
    found: Any = read("autoformer-ettm2")
    dense, oialr = (found["chosen"][name] for name in ("dense", "oialr"))
    held = oialr["compressed_bytes"]["mean"] / dense["compressed_bytes"]["mean"]
    settings = found["runs"][0]["settings"]
    trivial = horizons_card.read(HERE / "autoformer-horizons")["trivial"][str(settings["horizon"])]
    return {
        **start("autoformer-ettm2", f"Autoformer, width {settings['d_model']}"),
        "data": f"ETTm2, horizon {settings['horizon']}",
        "dense": dense["test_mse"]["mean"],
        "oialr": oialr["test_mse"]["mean"],
        "trivial": trivial["linear map"]["mse"],
        "held_share": held,
        "trained_share": oialr["trainable_percent"]["mean"] / 100,
        "seeds": oialr["seeds"],
    }


def by_horizon() -> list[dict[str, Any]]:
    """A line for each horizon of the Autoformer by thuml's protocol: OIALR as tuned beside dense."""
    found = horizons_card.read(HERE / "autoformer-horizons")
    lines = []
    for horizon in horizons_card.HORIZONS:
        name = "Autoformer, width 128, thuml's protocol"
        line = {**start("autoformer-horizons", name), "data": f"ETTm2, horizon {horizon}"}
        if pair := horizons_card.beside_dense(found, 128, horizon, "OIALR, tuned"):
            oialr, dense = pair
            line |= {
                "dense": dense["mean"],
                "oialr": oialr["mean"],
                "held_share": oialr["compressed_bytes"] / dense["compressed_bytes"],
                "trained_share": oialr["trainable_percent"] / 100,
                "trivial": found["trivial"][str(horizon)]["linear map"]["mse"],
                "seeds": oialr["seeds"],
            }
        lines.append(line)
    return lines


def pictures() -> list[dict[str, Any]]:
    """A line for each model and OIALR setting."""
    lines = []
    for folder, name in PICTURES.items():
        record = read(folder)
        for method in ("untuned", "tuned"):
            line = start(folder, f"{name}, {method}")
            runs = vision_card.chosen_runs(record, method) if record else []
            if record and runs:
                dense = vision_card.row_of("dense", vision_card.chosen_runs(record, "dense"))
                row = vision_card.row_of(method, runs)
                line |= {**row, "dense": dense["mean"], "oialr": row["mean"], "seeds": len(runs)}
            lines.append(line)
    return lines


def settled() -> list[dict[str, Any]]:
    """What the card on the stability of bases found, model by model."""
    paths = sorted((HERE / "stability").glob("*/results.json"))
    return [stability.facts(json.loads(path.read_text())) for path in paths]


def render() -> str:
    """The text of the index."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    facts = {
        "forecasts": [autoformer(), *by_horizon(), *forecasts()],
        "pictures": pictures(),
        "settled": settled(),
    }
    return environment.get_template("README.md.jinja").render(facts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(render())
