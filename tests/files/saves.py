"""Saves that are killed: what is saved over what, a kill at any call that changes the disk, what loads afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.cards import write_card
from tests.conftest import tiny_llama


# What changes a folder. Opening a file for writing counts twice: once when it is empty, once when it is half there.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")


def trained(seed: int, r: float = 0.5, **settings) -> PeftModel:
    """An adapter that is unlike that of another seed, on the same base."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=r, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oialr_sigma" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def old_nothing(folder: Path) -> None:
    """An empty folder."""


def old_adapter(folder: Path) -> None:
    trained(1, 0.75, target_modules=["q_proj", "up_proj"]).save_pretrained(folder)  # layers are other ones, too


def old_compressed(folder: Path) -> None:
    save_compressed(trained(1, 0.75), folder)


def old_dense(folder: Path) -> None:
    trained(1).merge_and_unload().save_pretrained(folder, max_shard_size="20KB")  # several files and their index


OLDS = {"empty": old_nothing, "adapter": old_adapter, "compressed": old_compressed, "dense": old_dense}
SAVES: dict[str, Callable[[nn.Module, Path], object]] = {
    "adapter": lambda model, folder: model.save_pretrained(folder),
    "compressed": save_compressed,
    "card": lambda model, folder: write_card(model, folder, results={"loss": 1.0}),
}


def loaded(folder: Path) -> dict[str, torch.Tensor] | None:
    """All that the folder holds as a model, by whichever way it loads; None where it holds none.

    An adapter comes before a model that lies beside it, as transformers has it.
    """
    if (folder / "adapter_config.json").exists():
        torch.manual_seed(0)
        model: nn.Module = PeftModel.from_pretrained(tiny_llama(), folder)
    elif (folder / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        return None
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def killed_at(moment: int, save: Callable[[], object], folder: Path) -> int:
    """Run a save in a process of its own that kills itself before its n-th change of the folder.

    Returns:
        How many changes there were until then, or until the save ended.
    """
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the save itself failed"
        return len(os.read(reader, 1 << 16))
    changes = 0

    def watch(name: str, arguments: tuple) -> None:
        nonlocal changes
        if name in EVENTS and _changes(name, arguments, str(folder)):
            changes += 1
            os.write(writer, b".")
            if changes == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        save()
        os._exit(0)
    except BaseException:
        os._exit(1)


def _changes(name: str, arguments: tuple, folder: str) -> bool:
    touched = any(folder in os.fspath(a) for a in arguments if isinstance(a, (str, os.PathLike)))
    return touched and (name != "open" or "w" in str(arguments[1]) or "+" in str(arguments[1]))


def prepared(folder: Path, source: Path) -> None:
    """The folder as it was before the save."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def everything(folder: Path) -> dict[str, bytes]:
    """{name: bytes, none for folders} of all that lies in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
