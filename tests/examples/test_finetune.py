"""examples/finetune: every method trains on a tiny model of every task, loads exactly, and is matched to LoRA."""

import io
import json
import random

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "finetune"
STEPS = ["--tiny", "--base-steps", 4, "--steps", 12]


def write_plays(folder):
    folder.mkdir()
    (folder / "input.txt").write_text("To be, or not to be: that is the question.\n" * 200)


def write_pictures(folder):
    image, parquet = pytest.importorskip("PIL.Image"), pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    for name in ("train", "test"):
        rows = []
        for i in range(120):
            file = io.BytesIO()
            image.new("RGB", (32, 32), (25 * (i % 10), 255 - 2 * i, 7 * i % 255)).save(file, "PNG")
            rows.append({"img": {"bytes": file.getvalue()}, "label": i % 10})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")


def write_sentences(folder):
    folder.mkdir()
    generator = random.Random(0)
    for name in ("train", "dev", "test"):
        words = [[f"word{generator.randrange(80)}" for _ in range(generator.randrange(3, 9))] for _ in range(90)]
        (folder / f"{name}.tsv").write_text("".join(f"{' '.join(some)}\t{i % 2}\n" for i, some in enumerate(words)))


DATA = {
    "plays": ("tinyshakespeare", write_plays),
    "pictures": ("cifar10-jpeg", write_pictures),
    "sentences": ("SST2", write_sentences),
}


def record_of(tmp_path, task, *options):
    name, write = DATA[task]
    if not (tmp_path / name).exists():
        write(tmp_path / name)
    output = tmp_path / f"{task}.json"
    python(FOLDER, "run.py", "--data", tmp_path, "--task", task, *STEPS, *options, "--output", output)
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", DATA)
def test_every_method_trains_and_loads_exactly(tmp_path, task):
    record = record_of(tmp_path, task, "--rates", 1e-3, "--seeds", 0)
    runs = {run["method"]: run for run in record["runs"]}
    assert len(runs) == (15 if task == "plays" else 16)
    assert all(run["reload"] <= 1e-5 for run in runs.values() if "reload" in run)
    alike = ["rsLoRA", "PiSSA", "OSF", "OIALR residual, parameters of LoRA"]
    alike += ["PSOFT"] if task == "plays" else []  # elsewhere the tiny layers have too low a full rank for the count
    assert all(abs(runs[name]["trainable"] / runs["LoRA"]["trainable"] - 1) < 0.1 for name in alike)
    assert runs["OIALR, target_size"]["held"] < 0.9


def test_the_rate_is_the_one_that_validation_prefers_and_nothing_runs_twice(tmp_path):
    options = ["--rates", 1e-5, 1e-2, "--seeds", 0, 1, "--methods", "full", "OIALR residual, file of LoRA"]
    record = record_of(tmp_path, "plays", *options)
    for name in ("full", "OIALR residual, file of LoRA"):
        runs = [run for run in record["runs"] if run["method"] == name]
        tried = {run["rate"]: run["validation"] for run in runs if run["seed"] == 0}
        assert [run["rate"] for run in runs if run["seed"] == 1] == [min(tried, key=tried.get)]
    assert record_of(tmp_path, "plays", *options)["runs"] == record["runs"]
