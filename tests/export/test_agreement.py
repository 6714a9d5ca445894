"""config.json and the weights of a compressed model belong together; a processor goes with it; how it is pushed."""

import importlib
import json
import os
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, OIALRWarning, save_compressed
from oialr_peft.export import save as saving
from tests.conftest import tiny_bert, tiny_llama
from tests.export.test_compressed import compressed, edit_record, logits


LAYER = "model.layers.0.mlp.up_proj"
load = AutoModelForCausalLM.from_pretrained


def record(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def names(folder) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


RECORDS = {
    "empty": lambda layers: {},
    "null": lambda layers: None,
    "one renamed": lambda layers: {("x" + name if name == LAYER else name): rank for name, rank in layers.items()},
    "one deleted": lambda layers: {name: rank for name, rank in layers.items() if name != LAYER},
}


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS)
def test_factors_that_the_record_does_not_name_are_refused(change, tmp_path):
    compressed(tiny_llama(), tmp_path)
    edit_record(tmp_path, layers=change(record(tmp_path)["layers"]), files={})
    with pytest.raises(ValueError, match=r"two factors of the layer 'model\.layers\."):
        load(tmp_path)


def test_config_and_weights_of_two_saves_are_refused_unless_told(tmp_path):
    compressed(tiny_llama(), tmp_path / "one")
    torch.manual_seed(5)
    compressed(tiny_llama(), tmp_path / "two")
    os.replace(tmp_path / "two" / "model.safetensors", tmp_path / "one" / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not the file that config\.json was saved with"):
        load(tmp_path / "one")
    edit_record(tmp_path / "one", files={})
    load(tmp_path / "one")


def test_without_links_the_model_stays_on_its_shelf_until_the_next_save(tmp_path, monkeypatch):
    model = compressed(tiny_llama(), tmp_path / "usual")
    usual = names(tmp_path / "usual")
    expected = logits(load(tmp_path / "usual"))

    def refuse(*args):
        raise OSError(95, "Operation not supported")

    folder = tmp_path / "folder"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        save_compressed(model, folder)
        (weights,) = record(folder)["files"]
        assert weights.startswith("oialr-weights-")
        assert not (folder / "model.safetensors").exists()
        assert torch.equal(logits(load(folder)), expected)
        model.save_pretrained(folder)  # another save does not take the shelf for a leftover
        (folder / "adapter_config.json").unlink()
        assert torch.equal(logits(load(folder)), expected)
    load(folder).save_pretrained(tmp_path / "again")  # a save of transformers names no files of another folder
    assert "files" not in record(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), expected)
    save_compressed(model, folder)
    assert names(folder) == usual
    assert torch.equal(logits(load(folder)), expected)


def test_several_files_and_their_index(tmp_path, monkeypatch):
    model = compressed(tiny_llama(), tmp_path / "one")
    original = PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda self, *a, **k: original(self, *a, max_shard_size="4KB", **k)
    )
    for _ in range(2):
        save_compressed(model, tmp_path / "several")
        assert set(record(tmp_path / "several")["files"]) == {
            name for name in names(tmp_path / "several") if "safetensors" in name
        }
        assert len(record(tmp_path / "several")["files"]) > 3
        found, expected = (load(tmp_path / name).state_dict() for name in ("several", "one"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    monkeypatch.undo()
    save_compressed(model, tmp_path / "several")
    assert names(tmp_path / "several") == names(tmp_path / "one")


def test_a_file_name_from_outside_the_folder_is_refused(tmp_path):
    compressed(tiny_llama(), tmp_path / "model")
    for name in ("../model.safetensors", "/etc/passwd", "adapter_model.safetensors", "x/model.safetensors"):
        edit_record(tmp_path / "model", files={name: "0" * 64})
        with pytest.raises(ValueError, match=r"must name files that save_compressed writes"):
            load(tmp_path / "model")


def test_a_model_with_nan_is_not_written_over_a_good_one(tmp_path):
    model = compressed(tiny_llama(), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.up_proj.oialr_sigma["default"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"up_proj.* holds NaN or infinite .* not written"):
        save_compressed(model, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_table_of_transformers_that_needs_torchvision_is_done_without(tmp_path, monkeypatch):
    """As transformers 5.17 has it for image processors."""
    from oialr_peft.export import processing

    def gated(name):
        if "image" in name:
            raise ImportError("image_processing_auto requires the Torchvision library")
        return importlib.import_module(name)

    monkeypatch.setattr(processing, "import_module", gated)
    with pytest.warns(OIALRWarning, match="has no tokenizer or processor"):
        save_compressed(get_peft_model(tiny_bert(), OIALRConfig(r=0.25)), tmp_path)


def test_the_processor_goes_along_or_its_absence_is_one_line(tmp_path):
    from tests.neighbours.test_libraries import tokenizer

    model = get_peft_model(tiny_bert(), OIALRConfig(r=0.25)).eval()
    with pytest.warns(OIALRWarning, match=r"has no tokenizer or processor, .*`processing_class`") as found:
        save_compressed(model, tmp_path / "bare")
    assert len([w for w in found if w.category is OIALRWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        save_compressed(model, tmp_path / "model", processing_class=tokenizer())
        save_compressed(model, tmp_path / "model")  # what lies there stays
    classify = transformers.pipeline("text-classification", str(tmp_path / "model"))
    assert classify.tokenizer("the film is good")["input_ids"] == tokenizer()("the film is good")["input_ids"]


def test_the_trainers_processing_class_goes_along_by_itself(tmp_path):
    from tests.neighbours.test_libraries import tokenizer

    data = [{"input_ids": [1, 2, 3], "labels": 1}] * 4
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True)
    model = get_peft_model(tiny_bert(), OIALRConfig(task_type="SEQ_CLS", r=0.25, update_interval=1))
    callbacks = [OIALRCallback()]
    Trainer(model, arguments, train_dataset=data, processing_class=tokenizer(), callbacks=callbacks).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        save_compressed(model, tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("the film is good") == tokenizer()("the film is good")


class Hub:
    """Stands for HfApi; notes what it is asked."""

    calls: list

    def __init__(self, token=None) -> None:
        Hub.calls = [("token", token)]

    def create_repo(self, name, **kwargs):
        Hub.calls.append(("create_repo", name, kwargs))
        return SimpleNamespace(repo_id=f"me/{name}")

    def create_branch(self, name, **kwargs):
        Hub.calls.append(("create_branch", name, kwargs))

    def list_repo_files(self, name, **kwargs):
        return ["adapter_config.json", "notes.txt"]

    def upload_folder(self, **kwargs):
        Hub.calls.append(("upload_folder", kwargs))
        if kwargs["commit_message"] == "fail":
            raise ConnectionError("the endpoint is dead")


def test_the_arguments_of_a_push(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "HfApi", Hub)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=0.25))
    settings = {"private": True, "token": "hf_x", "revision": "v2", "commit_message": "Mine", "create_pr": True}
    save_compressed(model, tmp_path / "model", push_to_hub=True, **settings)
    token, create, branch, (_, upload) = Hub.calls
    assert token == ("token", "hf_x")
    assert create == ("create_repo", "model", {"private": True, "exist_ok": True})
    assert branch == ("create_branch", "me/model", {"branch": "v2", "exist_ok": True})
    assert {key: upload[key] for key in ("revision", "commit_message", "create_pr", "delete_patterns")} == {
        "revision": "v2",
        "commit_message": "Mine",
        "create_pr": True,
        "delete_patterns": ["adapter_config.json"],
    }
    assert set(upload["allow_patterns"]) == names(tmp_path / "model")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take notes from Python 3.11 on")
def test_a_dead_endpoint_says_that_the_files_are_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "HfApi", Hub)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=0.25))
    with pytest.raises(ConnectionError) as caught:
        save_compressed(model, tmp_path / "model", push_to_hub=True, commit_message="fail")
    assert f"The model is complete in '{tmp_path / 'model'}'" in caught.value.__notes__[0]
    load(tmp_path / "model")
