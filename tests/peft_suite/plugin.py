"""A pytest plugin that puts OIALRConfig in the place of the configurations of PEFT's suites.

The suites' modules are imported unchanged; only the lists that their tests are parametrised with get other rows. Tests
that do not run over a configuration class are deselected: they name a method in their body and say nothing about
OIALR. So are three that load an adapter from the Hub, and five that list classes of their own: one makes LoRA adapters
whatever the class, four are about PEFT's tables of default targets, which OIALR does without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oialr_peft import OIALRConfig
from oialr_peft.cards import facts


# The custom-model suite's LoRA cases, and those of other methods for its models that LoRA has no case for. Left out:
# what only LoRA has (DoRA, rsLoRA and the other variants, `bias`, `lora_bias`, `target_parameters`,
# `trainable_token_indices`), and nn.Embedding and nn.Conv3d, which tests/peft and tests/weights have.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("MLP regex", "MLP", {"target_modules": "lin0"}),
    ("MLP first", "MLP", {"target_modules": ["lin0"]}),
    ("MLP last", "MLP", {"target_modules": ["lin1"]}),
    ("MLP both", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP saved module", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP excluded module", "MLP", {"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin1"]}),
    ("MLP low rank", "MLP", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin0": 4, "lin1": 0.5}}),
    ("EmbConv1D", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("EmbConv1D both", "EmbConv1D", {"target_modules": ["conv1d", "lin0"]}),
    ("EmbConv1D saved module", "EmbConv1D", {"target_modules": ["conv1d"], "modules_to_save": ["lin0"]}),
    ("Conv1d", "Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv1d both", "Conv1d", {"target_modules": ["conv1d", "lin0"]}),
    ("Conv1d bigger", "Conv1dBigger", {"target_modules": ["conv1d"]}),
    ("Conv1d kernel 1", "Conv1dKernel1", {"target_modules": ["conv1d"]}),
    ("Conv1d groups", "Conv1dGroups", {"target_modules": ["conv1d"]}),
    ("Conv2d", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d both", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d saved module", "Conv2d", {"target_modules": ["conv2d"], "modules_to_save": ["lin0"]}),
    ("Conv2d excluded module", "Conv2d", {"target_modules": ["conv2d", "lin0"], "exclude_modules": ["lin0"]}),
    ("Conv2d 1x1", "Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("Conv2d groups", "Conv2dGroups", {"target_modules": ["conv2d"]}),
    ("Conv2d groups 2", "Conv2dGroups2", {"target_modules": ["conv2d"]}),
    ("Conv2d 2", "Conv2d2", {"target_modules": ["lin0", "conv2d"]}),
    ("Conv2d 2 all", "Conv2d2", {"target_modules": ["lin0", "conv2d", "lin1"]}),
    ("MHA", "MHA", {"target_modules": ["mha"]}),
    ("MHA both", "MHA", {"target_modules": ["mha", "lin0"]}),
    ("MHA saved module", "MHA", {"target_modules": ["mha"], "modules_to_save": ["lin0"]}),
]
PAIRS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Same", {"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    ("Different", {"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
]
CUSTOM = "test_custom_models.py"
ROWS: dict[str, dict[str, list[Any]]] = {  # file: {its list: our rows}
    CUSTOM: {
        "TEST_CASES": [(name, model, OIALRConfig, kwargs) for name, model, kwargs in CASES],
        "ALL_PEFT_CONFIG_CLASSES": [OIALRConfig],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": [
            (name, "oialr", OIALRConfig, *({**kwargs, "init_weights": False} for kwargs in pair))
            for name, *pair in PAIRS
        ],
    },
    "test_config.py": {
        "ALL_CONFIG_CLASSES": [(OIALRConfig, {})],
        "LAYER_INDEXING_CONFIG_CLASSES": [(OIALRConfig, {})],
    },
    "test_decoder_models.py": {"ALL_CONFIGS": [(OIALRConfig, {"task_type": "CAUSAL_LM"})]},
    "test_encoder_decoder_models.py": {"ALL_CONFIGS": [(OIALRConfig, {"task_type": "SEQ_2_SEQ_LM"})]},
}

# Tests of every method that adds adapters later, with lists of classes of their own.
OWN_LISTS = (
    "test_multiple_adapters_mixed_modules_to_save",
    "test_multiple_adapters_mixed_modules_to_save_order_switched",
)
# They load another method's adapter from the Hub.
NEED_THE_HUB = ("test_from_pretrained", "test_from_pretrained_cache_dir", "test_save_pretrained_with_runtime_config")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, required=True, help="JSON file for the outcome of every test")
    parser.addoption("--residual", action="store_true", help="with OIALRConfig(residual=True)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(config.option.results))
    facts.hub_id = lambda name: name  # models are folders here, of which our cards would say nothing
    if config.option.residual:
        for row in (row for lists in ROWS.values() for rows in lists.values() for row in rows):
            for kwargs in (part for part in (row if isinstance(row, tuple) else ()) if isinstance(part, dict)):
                kwargs["residual"] = True


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Path):
    module = yield
    for name, rows in ROWS.get(module_path.name, {}).items():
        _put(module.obj, getattr(module.obj, name), rows)
    if module_path.name == CUSTOM:
        for test in OWN_LISTS:
            (mark,) = getattr(module.obj.TestPeftCustomModel, test).pytestmark
            mark.args[1][:] = [OIALRConfig]
        _accept_the_suites_input(module.obj.ModelConv1DKernel1)
    return module


def _put(module: Any, theirs: Any, rows: list[Any]) -> None:
    """Our rows in the place of a list of theirs, which decorators hold too, or of a tuple."""
    if isinstance(theirs, list):
        theirs[:] = rows
        return
    tests = (test for suite in vars(module).values() if isinstance(suite, type) for test in vars(suite).values())
    for mark in (mark for test in tests for mark in getattr(test, "pytestmark", ())):
        if len(mark.args) > 1 and mark.args[1] is theirs:
            object.__setattr__(mark, "args", (mark.args[0], rows))


def _accept_the_suites_input(model: Any) -> None:
    """PEFT has no case for this model: its forward calls `x` what the tests of the suite pass as `X`."""
    forward = model.forward
    model.forward = lambda self, X: forward(self, X)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Ids that stay the same when cases are added."""
    if val is OIALRConfig:
        return "OIALR"
    return "kwargs" if isinstance(val, dict) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    ours, others = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        chosen = OIALRConfig in params.values() and item.originalname not in NEED_THE_HUB
        (ours if chosen else others).append(item)
        item.user_properties.append(("model", params.get("model_id", item.cls and item.cls.__name__)))
    items[:] = ours
    config.hook.pytest_deselected(items=others)


class Results:
    """Writes {test id: {model, outcome, reason}} when the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.outcome == "passed" and (report.when != "call" or name in self.tests):
            return
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
        elif report.failed and (crash := getattr(report.longrepr, "reprcrash", None)):
            reason = crash.message
        model = next(str(value) for key, value in report.user_properties if key == "model")
        self.tests[name] = {"model": model, "outcome": report.outcome, "reason": reason}

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.tests, indent=1))
