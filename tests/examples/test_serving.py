"""examples/serving: what is exported computes what the compressed model does, by two products a layer."""

import json
import sys

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.modules import Factored
from tests.conftest import tiny_bert
from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "serving"


def test_the_readme_is_what_the_results_give():
    code = "from tables import *; print(render(HERE / 'results'), end='')"
    assert python(FOLDER, "-c", code) == (FOLDER / "README.md").read_text()


@pytest.fixture
def model(tmp_path):
    save_compressed(get_peft_model(tiny_bert(), OIALRConfig(r=0.25)), tmp_path / "small")
    return type(tiny_bert()).from_pretrained(tmp_path / "small").eval()


@pytest.fixture
def export(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "export", raising=False)
    import export

    return export


def masked_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 48, (3, 11))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_a_program_of_torch_export(model, export, tmp_path):
    export.to_program(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    batch = masked_batch()
    torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits)
    weights = {name for name in program.state_dict if name.endswith(("down.weight", "up.weight"))}
    assert len(weights) == 2 * sum(isinstance(module, Factored) for module in model.modules())
    assert sum(tensor.numel() for tensor in program.state_dict.values()) == sum(p.numel() for p in model.parameters())


def test_onnx(model, export, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export.to_onnx(model, tmp_path / "model.onnx")
    held = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    batch = masked_batch()
    (found,) = held.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), model(**batch).logits.detach())
    graph = onnx.load(tmp_path / "model.onnx").graph
    values = sum(onnx.numpy_helper.to_array(tensor).size for tensor in graph.initializer if len(tensor.dims) == 2)
    own = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert own <= values <= 1.1 * own + 1024  # the two factors of a layer were not multiplied beforehand


@pytest.mark.slow
def test_the_measurement_runs(tmp_path):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "found.json"
    python(FOLDER, "measure.py", "--layers", 1, "--width", 128, "--rounds", 1, "--shares", 0.25, "--output", output)
    rows = {row["kind"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["0.25"]["products"] == rows["0.25"]["products when run"] == 2 * rows["dense"]["products"]
    assert all(row["difference"] < 1e-4 > row["program difference"] for row in rows.values())
    assert rows["0.25"]["bytes"] < rows["dense"]["bytes"]
