"""examples/serving: what is exported computes what the compressed model does, by two products a layer."""

import json
import sys

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.modules import Factored
from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "serving"


@pytest.fixture
def model(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=48, **sizes))
    save_compressed(get_peft_model(bert, OIALRConfig(r=0.25)), tmp_path / "small")
    return type(bert).from_pretrained(tmp_path / "small").eval()


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


@pytest.mark.slow  # tests/export exports a model too, without free sizes
def test_a_program_of_torch_export(model, export, tmp_path):
    export.to_program(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    batch = masked_batch()
    torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits)
    weights = {name for name in program.state_dict if name.endswith(("down.weight", "up.weight"))}
    assert len(weights) == 2 * sum(isinstance(module, Factored) for module in model.modules())
    assert sum(tensor.numel() for tensor in program.state_dict.values()) == sum(p.numel() for p in model.parameters())


def products(graph) -> list[tuple[int, ...]]:
    """The shapes, smaller side first, of the weights that matrix products of the graph take."""
    shapes = {tensor.name: tuple(sorted(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) == 2}
    used = [name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input]
    return sorted(shapes[name] for name in used if name in shapes)


def run(file, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    held = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(held.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])


def test_onnx_keeps_two_products_a_layer(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    layers = [
        Factored(nn.Linear(20, 3, bias=False), nn.Linear(3, 30)),
        nn.GELU(),
        Factored(nn.Linear(30, 4, bias=False), nn.Linear(4, 10)),
    ]
    model, x = nn.Sequential(*layers).eval(), torch.randn(16, 20)  # 16 rows: the short way, which is not recorded
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    torch.testing.assert_close(run(tmp_path / "model.onnx", {"input": x}), model(x).detach())
    assert products(onnx.load(tmp_path / "model.onnx").graph) == [(3, 20), (3, 30), (4, 10), (4, 30)]


@pytest.mark.slow
def test_a_whole_model_as_onnx_with_free_sizes(model, export, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    export.to_onnx(model, tmp_path / "model.onnx")
    batch = masked_batch()
    torch.testing.assert_close(run(tmp_path / "model.onnx", batch), model(**batch).logits.detach())
    layers = sum(isinstance(module, Factored) for module in model.modules())
    assert len(products(onnx.load(tmp_path / "model.onnx").graph)) == 2 * layers + 1  # and the head


@pytest.mark.slow
def test_the_measurement_runs(tmp_path):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "found.json"
    python(FOLDER, "measure.py", "--layers", 1, "--width", 128, "--rounds", 1, "--shares", 0.25, "--output", output)
    rows = {row["kind"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["0.25"]["products"] == rows["0.25"]["products when run"] == 2 * rows["dense"]["products"]
    assert all(row["difference"] < 1e-4 > row["program difference"] for row in rows.values())
    assert rows["0.25"]["bytes"] < rows["dense"]["bytes"]
