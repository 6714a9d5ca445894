"""Random lives of an adapter: whatever is done between two steps, training goes on as if nothing had been done.

A life is a row of steps with anything between them that a user may do: saving, loading, merging, exporting, copying,
going back to a checkpoint. It is compared with the run of the same settings in which nothing was done.
"""

from __future__ import annotations

import copy
import functools
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater, rank_report, save_compressed
from oialr_peft.export.lora import save_as_lora
from tests.conftest import output, tiny_gpt2, tiny_llama, tiny_mixtral, tokens


STEPS = 24
CUTS = {"update_interval": 3, "layer_step": 0.5, "sigma_cutoff": 0.3}
SETTINGS = {
    "fine-tuning": CUTS,
    "moving bases": {**CUTS, "bases": "longer", "freeze_bases": 14},
    "from scratch": {**CUTS, "delay": 5, "train_rest": True},
    "a size": {"target_size": 0.6, "delay": 4, "train_rest": True, "update_interval": 3},
    "settling": {**CUTS, "delay": "auto", "update_interval": 2, "bases": "longer"},
    "residual": {"residual": True, "r": 4},
}
OPTIMIZERS = {
    "AdamW": lambda model: torch.optim.AdamW(trained(model), lr=1e-2),
    "fused AdamW": lambda model: torch.optim.AdamW(trained(model), lr=1e-2, fused=True),
    "SGD": lambda model: torch.optim.SGD(trained(model), lr=1e-1, momentum=0.9),
    "Adafactor": lambda model: torch.optim.Adafactor(trained(model), lr=1e-2),
    "Muon": lambda model: MuonAdamW.from_model(model, lr=1e-2),
}
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "mixtral": tiny_mixtral}


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def base(kind: str):
    torch.manual_seed(0)
    return MODELS[kind]()


def adapted(kind: str, config: str):
    return get_peft_model(base(kind), OIALRConfig(task_type="CAUSAL_LM", **SETTINGS[config]))


class Run:
    """A model with its optimizer and updater, `steps` into the run."""

    def __init__(self, model, optimizer: str) -> None:
        self.model, self.kind, self.steps = model, optimizer, 0
        self.optimizer = OPTIMIZERS[optimizer](model)
        self.updater = OIALRUpdater(model, self.optimizer, total_steps=STEPS)

    def gradients(self) -> None:
        torch.manual_seed(self.steps)  # of dropout
        batch = tokens(4, seed=self.steps)
        self.model.train()
        self.model(input_ids=batch, labels=batch).loss.backward()

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()
        self.updater.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def logits(self) -> torch.Tensor:
        return logits(self.model)

    def state(self):
        parts = (self.model, self.optimizer, self.updater)
        return self.steps, copy.deepcopy([part.state_dict() for part in parts])

    def load(self, state) -> None:
        self.steps, (model, optimizer, updater) = state
        self.model.load_state_dict(copy.deepcopy(model))
        self.optimizer.load_state_dict(copy.deepcopy(optimizer))
        self.updater.load_state_dict(updater)

    def go_on_with(self, model) -> None:
        """Leave this model for one that has the same weights, as a new process does."""
        steps, (_, optimizer, updater) = self.state()
        self.__init__(model, self.kind)
        self.steps = steps
        self.optimizer.load_state_dict(optimizer)
        self.updater.load_state_dict(updater)


def logits(model) -> torch.Tensor:
    return output(model, {"input_ids": tokens()})


@functools.cache
def undisturbed(kind: str, config: str, optimizer: str) -> list[torch.Tensor]:
    """The outputs after every step of the run in which nothing else is done."""
    run = Run(adapted(kind, config), optimizer)
    found = [run.logits()]
    for _ in range(STEPS):
        run.step()
        found.append(run.logits())
    return found


def one_of(names):
    return strategies.sampled_from(list(names))


def then_train(action):
    """A rule: something that a user does, and up to three steps after it."""

    @functools.wraps(action)
    def both(self, count: int) -> None:
        action(self)
        self.train(count)

    return rule(count=strategies.integers(0, 3))(both)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)

    def teardown(self) -> None:
        self.place.cleanup()

    @initialize(kind=one_of(MODELS), config=one_of(SETTINGS), optimizer=one_of(OPTIMIZERS))
    def begin(self, kind: str, config: str, optimizer: str) -> None:
        self.kind, self.expected = kind, undisturbed(kind, config, optimizer)
        self.run = Run(adapted(kind, config), optimizer)
        self.exact, self.kept, self.config = True, None, self.run.model.peft_config["default"]

    def same(self, found: torch.Tensor, exact: bool = False) -> None:
        expected = self.expected[self.run.steps]
        if exact:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)

    @invariant()
    def it_computes_what_it_would_have(self) -> None:
        self.same(self.run.logits(), self.exact)

    def train(self, count: int) -> None:
        for _ in range(min(count, STEPS - self.run.steps)):
            self.run.step()

    def forget_the_gradient(self) -> None:
        self.run.optimizer.zero_grad()
        if self.config.target_size is not None:  # what its batch showed of the layers counts all the same
            self.exact = False

    @then_train
    def keep_a_checkpoint(self) -> None:
        self.kept = self.run.state()

    @precondition(lambda self: self.kept is not None)
    @then_train
    def go_back_to_the_checkpoint(self) -> None:
        self.run.load(self.kept)

    @then_train
    def save_and_go_on_in_a_new_process(self) -> None:
        self.run.model.save_pretrained(self.folder / "adapter")
        self.run.go_on_with(PeftModel.from_pretrained(base(self.kind), self.folder / "adapter", is_trainable=True))

    @then_train
    def go_on_with_a_copy(self) -> None:
        self.run.go_on_with(copy.deepcopy(self.run.model))

    @then_train
    def go_on_with_a_pickle(self) -> None:
        self.run.go_on_with(pickle.loads(pickle.dumps(self.run.model)))

    @then_train
    def take_out_and_put_back(self) -> None:
        set_peft_model_state_dict(self.run.model, copy.deepcopy(get_peft_model_state_dict(self.run.model)))

    @then_train
    def load_the_file_into_the_live_adapter(self) -> None:
        self.run.model.save_pretrained(self.folder / "adapter")
        self.run.model.load_adapter(self.folder / "adapter", "default", is_trainable=True)

    @then_train
    def merge_and_unmerge(self) -> None:
        self.run.model.merge_adapter()
        self.same(self.run.logits())
        self.run.model.unmerge_adapter()
        if self.config.residual:  # adds and subtracts; elsewhere a weight takes the place of another
            self.exact = False

    @then_train
    def merge_a_copy(self) -> None:
        self.same(logits(copy.deepcopy(self.run.model).merge_and_unload()))

    @then_train
    def compress(self) -> None:
        if not self.config.residual:
            save_compressed(self.run.model, self.folder / "small")
            self.same(logits(AutoModelForCausalLM.from_pretrained(self.folder / "small")))

    @then_train
    def save_as_lora(self) -> None:
        if not self.config.frees_base and self.kind != "mixtral":  # LoRA has no form for fused experts
            save_as_lora(self.run.model, self.folder / "lora", rank=1.0)
            self.same(logits(PeftModel.from_pretrained(base(self.kind), self.folder / "lora")))

    @then_train
    def disable(self) -> None:
        if not self.config.frees_base:
            with self.run.model.disable_adapter():
                torch.testing.assert_close(self.run.logits(), self.expected[0], atol=1e-4, rtol=1e-4)

    @then_train
    def use_another_adapter(self) -> None:
        if not self.config.frees_base:
            self.run.model.add_adapter("other", OIALRConfig(task_type="CAUSAL_LM", residual=self.config.residual, r=2))
            self.run.model.set_adapter("other")
            self.run.logits()
            self.run.model.set_adapter("default")
            self.run.model.delete_adapter("other")

    @then_train
    def to_double_and_back(self) -> None:
        self.run.model.double()
        self.run.logits()
        self.run.model.float()

    @then_train
    def throw_a_gradient_away(self) -> None:
        self.run.gradients()
        self.forget_the_gradient()
        self.run.updater.step()

    @then_train
    def run_out_of_memory(self) -> None:
        def fail(*_):
            raise torch.OutOfMemoryError

        self.run.gradients()
        hook = self.run.optimizer.register_step_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            self.run.optimizer.step()
        hook.remove()
        self.forget_the_gradient()

    @then_train
    def make_a_new_updater(self) -> None:
        state = self.run.updater.state_dict()
        self.run.updater = OIALRUpdater(self.run.model, self.run.optimizer, total_steps=STEPS)
        self.run.updater.load_state_dict(state)

    @then_train
    def reload_the_optimizer(self) -> None:
        self.run.optimizer.load_state_dict(copy.deepcopy(self.run.optimizer.state_dict()))

    @then_train
    def look(self) -> None:
        assert str(rank_report(self.run.model))
        assert self.run.updater.summary()


# The same lives each time; LIVES=500 draws other ones, as many.
COUNT = os.environ.get("LIVES")
Life.TestCase.settings = settings(
    max_examples=int(COUNT or 25), stateful_step_count=25, deadline=None, derandomize=COUNT is None, database=None
)
TestLives = Life.TestCase
pytestmark = pytest.mark.timeout(0 if COUNT else 900)
