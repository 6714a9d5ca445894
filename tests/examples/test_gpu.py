"""examples/gpu without a GPU: all jobs run in a tiny form, are resumed, and fill the tables; missing rows say why."""

import json

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "gpu"


RENDER = """
import json, sys, tables
from pathlib import Path
results = tables.read(Path(sys.argv[1]))
print(json.dumps([tables.render(name, *results) for name in ("README.md.jinja", "summary.md.jinja")]))
"""


def test_the_tables_are_what_the_results_give_and_every_job_has_a_row():
    readme, summary = json.loads(python(FOLDER, "-c", RENDER, FOLDER / "results"))
    assert readme == (FOLDER / "README.md").read_text()
    assert summary in (ROOT / "docs" / "speed.md").read_text()
    code = "from tables import TABLES; from jobs import JOBS; import json\n"
    code += "print(json.dumps([j.name.split()[0] in TABLES for j in JOBS]))"
    assert set(json.loads(python(FOLDER, "-c", code))) == {True}


JOBS = """
import sys, run
from jobs import Job
run._gpus = lambda: 0
folder = sys.argv[1]
sys.argv = ["run.py", "--results", f"{folder}/results"]
run.main()
run.LIMIT = 5.0
run.JOBS = (
    next(job for job in run.JOBS if job.name == "layer fp32"),
    Job("wrong", f"{folder}/wrong.py", {}, {}),
    Job("endless", f"{folder}/endless.py", {}, {}),
    Job("elsewhere", f"{folder}/wrong.py", {}, {}, modules=("no_such_package",)),
)
sys.argv = ["run.py", "--tiny", "--results", f"{folder}/results", "--commit", "abc"]
for _ in range(2):
    try:
        run.main()
    except SystemExit as error:
        print("ended:", error)
"""


def test_a_job_that_is_done_is_not_run_again_and_one_that_fails_says_why(tmp_path):
    (tmp_path / "wrong.py").write_text("raise ValueError('a reason')")
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(600)")
    printed = python(FOLDER, "-c", JOBS, tmp_path)
    assert "No GPU here: nothing was measured" in printed
    assert printed.count("layer fp32: ") == 1
    assert printed.count("ended: 3 jobs without a result: wrong, endless, elsewhere.") == 2
    found = json.loads((tmp_path / "results" / "layer fp32.json").read_text())
    assert (found["commit"], found["tiny"]) == ("abc", True)
    assert found["hardware"]
    assert "/" not in found["command"]  # of the machine
    assert found["versions"]["torch"]
    assert json.loads((tmp_path / "results" / "not_measured.json").read_text()) == {
        "wrong": "ValueError: a reason",
        "endless": "the time was over",
        "elsewhere": "the package no_such_package is not installed",
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_job_runs_in_its_tiny_form_and_fills_its_rows(tmp_path):
    python(
        FOLDER,
        "-c",
        "import run, sys\nsys.argv = ['run.py', '--tiny', '--results', sys.argv[1]]\nrun.main()",
        tmp_path,
    )
    readme, summary = json.loads(python(FOLDER, "-c", RENDER, tmp_path))
    assert "not measured" not in readme + summary.replace("decode at 25 %", "")
