"""What is published: one version, and files of the package alone. `make dist` installs it and runs the quick start."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import oialr_peft


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "oialr_peft"


def test_the_version_is_written_once_and_cited():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "oialr_peft.__version__" }' in project
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert cited == oialr_peft.__version__


def test_everything_in_the_package_is_packaged():
    """Files that are not Python are named by patterns, and a new one could be forgotten."""
    (patterns,) = re.findall(r"^oialr_peft = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    named = {file for pattern in re.findall(r'"(.+?)"', patterns) for file in PACKAGE.glob(pattern)}
    others = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert named == others
    assert PACKAGE / "py.typed" in named


@pytest.mark.slow
@pytest.mark.skipif(find_spec("build") is None, reason="not run: no `build`; pip install oialr-peft[dist]")
def test_wheel_and_sdist_hold_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    held = set(zipfile.ZipFile(wheel).namelist())
    own = {name for name in files.splitlines() if name.startswith("oialr_peft/")}
    assert {name for name in held if ".dist-info/" not in name} == own
    assert any(name.endswith("licenses/LICENSE") for name in held)
    sources = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert own | {"LICENSE", "CHANGELOG.md", "CITATION.cff", "README.md"} <= sources
    assert not [name for name in sources if name.split("/")[0] in ("tests", "examples", "docs", "model_cards")]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
