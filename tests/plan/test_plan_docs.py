"""The tables of examples/plan are those that the package computes."""

import importlib.util
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "plan"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("plan_table_example", FOLDER / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_command_writes(table):
    assert (FOLDER / "README.md").read_text() == table.readme()
