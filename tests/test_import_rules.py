"""Imports point downwards: a file imports from its own folder and from lower levels only."""

import ast
from pathlib import Path

import pytest

import oialr_peft


PACKAGE = Path(oialr_peft.__file__).parent
LEVELS = {
    "errors": 0,
    "update_report": 1,
    "units": 0,
    "memory": 0,
    "files": 0,
    "linalg": 0,
    "compat": 0,
    "config_checks": 0,
    "missed_update": 1,
    "config": 1,
    "policy": 1,
    "workers": 1,
    "moments": 2,
    "kinds": 1,
    "weights": 2,
    "base_weight": 2,
    "layer": 3,
    "plain": 4,
    "checkpoint": 4,
    "joint_ranks": 5,
    "tuner": 5,
    "update": 6,
    "training": 7,
    "report": 8,
    "plan": 8,
    "cards": 9,
    "export": 10,
    "registry": 11,
    "cli": 12,
    "__init__": 13,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def area(path: Path) -> str:
    """The name in LEVELS of a file: its folder in the package, or the file itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The areas of the package that a file imports, at module level or inside functions, not for type checking."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    depth, found = len(path.relative_to(PACKAGE).parts), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.level == depth:
            found.update([node.module.split(".")[0]] if node.module else [alias.name for alias in node.names])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    level = LEVELS[area(path)]
    wrong = {name for name in imported(path) if name != area(path) and LEVELS[name] >= level}
    assert wrong == set()


def test_the_rule_looks_at_something():
    assert imported(PACKAGE / "update.py") == {
        "config",
        "errors",
        "joint_ranks",
        "linalg",
        "memory",
        "moments",
        "policy",
        "tuner",
        "update_report",
        "workers",
        "weights",
    }
    assert imported(PACKAGE / "weights" / "adapted.py") == {"compat", "linalg", "policy", "workers"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "linalg").glob("*.py")), ids=lambda path: path.name)
def test_the_maths_knows_neither_modules_nor_peft_nor_processes(path):
    text = path.read_text()
    for forbidden in (
        "torch.nn",
        "from torch import nn",
        "import peft",
        "from peft",
        "torch.distributed",
        "import transf",
    ):
        assert forbidden not in text.split('"""', 2)[2]
