"""Every block of Python on a page of docs/ runs, in order, as it stands; the site is built without a warning."""

import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.docs.around import names_of, put_on_the_hub


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# A block that needs one of them, and what follows on its page, is reported as not run where it is absent.
OPTIONAL = set("trl sentence_transformers diffusers onnx onnxscript onnxruntime torchao".split())
# Other libraries to import, torch's exporter, several trainings.
SLOW = {f"{name}.md" for name in "causal_lm diffusion embeddings from_lora seq2seq serving vision".split()}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.fixture
def one_process():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else []) for page in WITH_CODE],
    ids=lambda page: page.name,
)
def test_the_code_runs(page, tmp_path, monkeypatch, one_process):
    monkeypatch.chdir(tmp_path)
    code = blocks(page)
    put_on_the_hub("".join(code), tmp_path)
    names = names_of(page.name)
    for number, block in enumerate(code, start=1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tiny models and runs earn some
                exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        except ModuleNotFoundError as missing:
            if missing.name not in OPTIONAL:
                raise
            pytest.skip(f"block {number} and what follows: not run, {missing.name} absent")


def test_most_pages_have_code_and_none_is_missed():
    fences = sum(page.read_text().count("```python") for page in PAGES)
    assert fences == sum(len(blocks(page)) for page in PAGES) >= 15


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="not run: no mkdocstrings; pip install oialr-peft[docs]")
def test_the_site_is_built_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for page in PAGES:
        assert (tmp_path / page.with_suffix(".html").name).exists()
    import oialr_peft

    api = (tmp_path / "api.html").read_text()
    assert all(f'id="oialr_peft.{name}"' in api for name in oialr_peft.__all__)
