"""examples/vision: pictures are read and refused, every method runs, and the ImageNet script on generated images."""

import json

import numpy as np
import pytest

from tests.helpers.examples import ROOT, python, refused


FOLDER = ROOT / "examples" / "vision"


def write_pictures(folder, train: int, test: int) -> None:
    """Two parquet files of noise in CIFAR's columns."""
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    chance = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for name, count in (("train", train), ("test", test)):
        pictures = [image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
        rows = {"img": pictures, "label": [i % 10 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")


def test_splits_are_cut_and_too_few_images_are_refused(tmp_path):
    write_pictures(tmp_path, 30, 10)
    code = """
import sys
from pictures import load_pictures
splits = load_pictures(sys.argv[1], {"train": 20, "validation": 10, "test": 10})
print([tuple(images.shape) for images, _ in splits.values()], splits["validation"][1].tolist())
try:
    load_pictures(sys.argv[1], {"train": 30, "validation": 10, "test": 10})
except ValueError as error:
    print(error)
"""
    shapes, said = python(FOLDER, "-c", code, tmp_path).splitlines()
    assert shapes == "[(20, 3, 32, 32), (10, 3, 32, 32), (10, 3, 32, 32)] [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
    assert said.startswith("data: 40 images are asked for, got 30")


@pytest.mark.slow
def test_all_methods_are_compared(tmp_path):
    write_pictures(tmp_path, 60, 20)
    output = tmp_path / "resnet" / "results.json"
    given = ["--steps", 30, "--batch", 8, "--counts", 40, 20, 20, "--rates", 1e-3, "--seeds", 0, 1]
    given += ["--settings", "sigma alone, 40 %", "longer until 80 %, 30 %"]
    python(FOLDER, "run.py", "--data", tmp_path, "--model", "resnet", *given, "--output", output)
    runs = json.loads(output.read_text())["runs"]
    assert [run["method"] for run in runs if run["seed"] == 1] == ["dense", "untuned", "tuned"]
    assert all(run["held_share"] <= 0.4 for run in runs if run["method"] != "dense")
    code = "import sys, pathlib, vision_card; print(vision_card.render(pathlib.Path(sys.argv[1])))"
    assert "OIALR, tuned" in python(FOLDER, "-c", code, output.parent)
    given += ["--batch", 64, "--output", tmp_path / "other.json"]
    assert "at most the 40 images" in refused(FOLDER, "run.py", "--data", tmp_path, "--model", "resnet", *given)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_imagenet_runs_on_generated_images(model, tmp_path):
    image = pytest.importorskip("PIL.Image")
    chance = np.random.default_rng(0)
    for part in ("train", "val"):
        for place, name in enumerate(("n01", "n02")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = chance.integers(0, 80, (40 + number, 50, 3), dtype=np.uint8)
                pixels[..., place] += 150
                image.fromarray(pixels).save(folder / f"{number}.JPEG")
    given = ["--model", model, "--method", "oialr", "--target-size", 0.9, "--size", "tiny", "--side", 32]
    out = tmp_path / "out"
    python(
        FOLDER,
        "imagenet.py",
        "--data",
        tmp_path,
        *given,
        "--epochs",
        10,
        "--batch",
        4,
        "--workers",
        0,
        "--output",
        out,
    )
    assert (out / "model" / "model.safetensors").exists()
    assert len((out / "trace.jsonl").read_text().splitlines()) > 1
