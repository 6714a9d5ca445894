"""Damaged and hostile adapters and compressed models: refused in words, or as good as the sound ones."""

import shutil
from collections import Counter

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from oialr_peft import OIALRConfig
from tests.conftest import output, tokens

from . import cases
from .judge import Verdict, judged


EVERY = 9  # of the cases, in the short run
X = torch.linspace(-1, 1, 36).reshape(3, 12).sin()
# A file, or our words for one; each of these messages names the entry too.
NAMES = ("adapter_config.json", "adapter_model", "adapter file", "config.json", "model.safetensors")
NAMES += ("compressed model", "The checkpoint lacks the tensor")


def check(verdicts: list[Verdict], obscure: float = 0.02) -> None:
    """No silent fault, none slow, heavy or fatal; at most that share refused in others' words."""
    count = Counter(verdict.outcome for verdict in verdicts)
    print(dict(count), "of", len(verdicts))
    bad = [v for v in verdicts if v.outcome not in ("right", "refused")]
    shown = "\n".join(f"{v.outcome}: {v.case}: {v.words[:200]}" for v in bad)
    assert not {"silent", "slow", "heavy", "crash"} & count.keys(), shown
    more = 0.06 if transformers.__version__ < "5" else 0.0  # which opens files before it asks us
    assert count["obscure"] <= (obscure + more) * len(verdicts), shown


def run(sound, damage, attempt, tmp_path, every: int) -> list[Verdict]:
    folder, verdicts = tmp_path / "folder", []
    for number, (case, change) in enumerate(damage):
        if number % every == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            change(folder)
            verdicts.append(judged(case, lambda number=number: attempt(folder, number // every), NAMES))
    return verdicts


def adapter_verdicts(tmp_path, every: int) -> list[Verdict]:
    verdicts = []
    for kind in cases.ADAPTERS:
        model = cases.adapter(kind)
        sound = tmp_path / kind
        model.save_pretrained(sound)
        expected = model(X)
        live = get_peft_model(cases.base(kind), OIALRConfig(**cases.ADAPTERS[kind][0])).eval()

        def attempt(folder, number, kind=kind, expected=expected, live=live):
            if number % 2:
                return into_live(live, folder, expected)
            return torch.equal(PeftModel.from_pretrained(cases.base(kind), folder)(X), expected)

        verdicts += run(sound, cases.adapters(sound, kind), attempt, tmp_path, every)
    return verdicts


def into_live(live, folder, expected) -> bool:
    """Into a model that has an adapter: what is refused must leave it as it was."""
    before = {key: value.clone() for key, value in live.state_dict().items()}
    try:
        live.load_adapter(folder, "default")
    except Exception:
        after = live.state_dict()
        if before.keys() != after.keys() or not all(torch.equal(before[key], after[key]) for key in before):
            return False
        raise
    return torch.equal(live(X), expected)


def compressed_verdicts(tmp_path, every: int) -> list[Verdict]:
    sound = tmp_path / "compressed"
    cases.write_compressed(sound)
    inputs = {"input_ids": tokens()}
    expected = output(AutoModelForCausalLM.from_pretrained(sound), inputs)

    def attempt(folder, number):
        return torch.equal(output(AutoModelForCausalLM.from_pretrained(folder), inputs), expected)

    return run(sound, cases.compressed(sound), attempt, tmp_path, every)


def test_some(tmp_path):
    check(adapter_verdicts(tmp_path, EVERY) + compressed_verdicts(tmp_path, EVERY), obscure=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all(tmp_path):
    found = adapter_verdicts(tmp_path, 1) + compressed_verdicts(tmp_path, 1)
    assert len(found) >= 800
    check(found)
