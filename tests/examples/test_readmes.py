"""The README of every example that has results is what they give."""

import pytest

from tests.helpers.examples import ROOT, python


NAMES = ("compression", "delay", "demo", "finetune", "quality", "serving", "target_size")
FOLDERS = [ROOT / "examples" / name for name in NAMES]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_readme_is_what_the_results_give(folder):
    code = "from tables import *; print(render(HERE / 'results'), end='')"
    assert python(folder, "-c", code) == (folder / "README.md").read_text()
