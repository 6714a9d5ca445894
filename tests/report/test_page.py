"""`oialr report`: one page about a real run, with all that it recorded and nothing from elsewhere."""

import json
import re
from xml.etree import ElementTree

import pytest

from oialr_peft import OIALRCallback, OIALRWarning
from oialr_peft.cli import main
from oialr_peft.report.page import report_page, write_report
from oialr_peft.report.run import Run, read_run
from tests.training.runs import dataset, trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with a trace and a checkpoint, and the ranks at its end."""
    folder = tmp_path_factory.mktemp("run")
    callbacks = [OIALRCallback(trace=folder / "trace.jsonl")]
    kwargs = {"eval_dataset": dataset(8), "eval_strategy": "steps", "eval_steps": 8}
    run = trainer(str(folder), callbacks=callbacks, save_strategy="steps", save_steps=12, **kwargs)
    run.train()
    run.save_state()
    return folder, run.model.base_model.ranks()


def test_the_page_has_every_figure_and_layer_and_needs_nothing_else(finished, capsys):
    folder, ranks = finished
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert capsys.readouterr().out.strip() == f"Written: {folder / 'report.html'}"
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Loss", "Ranks", "Ranks, layer by layer", "Spectra", "Updates", "Size", "Layers at the end"]
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 6
    assert all(len(list(ElementTree.fromstring(figure).iter())) > 30 for figure in figures)
    rows = dict(re.findall(r"<tr><td>(.*?)</td><td>(\d+)</td>", page))
    assert rows == {name: str(rank) for name, rank in ranks.items()}
    assert not re.search(r'<(script|link|img)|(src|href)="(?!#|data:)|url\((?!#)|@import', page)


def test_logs_alone_and_a_trace_alone_give_what_they_have(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "checkpoint-12").mkdir()
    for name in ("checkpoint-12/trainer_state.json", "checkpoint-24/trainer_state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert max(read_run(tmp_path).series("loss")[0]) == 24  # the latest checkpoint's
    page = report_page(read_run(tmp_path))
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Loss", "Ranks", "Size"]
    write_report(folder / "trace.jsonl", tmp_path / "trace.html")
    assert "Layers at the end" in (tmp_path / "trace.html").read_text()


def test_names_are_text_and_not_markup():
    update = {"step": 3, "ranks": {"<b>a": 2}, "full_ranks": {"<b>a": 4}, "changed": {}, "seconds": 0.1}
    page = report_page(Run("<i>run", [], [update]))
    assert "<b>a" not in page
    assert "<i>run" not in page
    assert "&lt;b&gt;a" in page


def test_cuts_are_counted_one_after_another_and_the_whole_model_is_told():
    update = {"ranks": {"a": 2}, "full_ranks": {"a": 4}, "changed": {}, "dropped": {"a": 0.5}, "seconds": 0.1}
    size = {"compressed_bytes": 6_000, "dense_bytes": 10_000}
    logs = [{"step": 6, "eval_accuracy": 0.75, "eval_runtime": 9.0}]
    page = report_page(Run("run", logs, [{**update, "step": step, **size} for step in (3, 6)]))
    assert "<td>75.00 %</td>" in page  # not 100
    assert "6 kB, 60% of 10 kB" in page
    assert "<dt>Last evaluation accuracy</dt><dd>0.75</dd>" in page
    assert "Last evaluation runtime" not in page


@pytest.mark.parametrize(("made", "message"), [(False, "There is no run at"), (True, "tells of no OIALR update")])
def test_a_folder_without_a_run_is_refused(made, message, tmp_path, capsys):
    folder = tmp_path / "run"
    if made:
        trainer(str(folder), callbacks=[OIALRCallback()], max_steps=3).save_state()
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def state(folder, losses, ended=False):
    folder.mkdir(exist_ok=True)
    logs = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    ends = [{"step": len(losses), "train_runtime": 1.0}, {"step": len(losses), "eval_loss": 1.0}] if ended else []
    content = {"global_step": len(losses), "log_history": [*logs, *ends]}
    (folder / "trainer_state.json").write_text(json.dumps(content))


def traced(folder, name="trace.jsonl", steps=(2,)):
    update = {"ranks": {"a": 2}, "full_ranks": {"a": 4}, "changed": {}, "seconds": 0.1}
    (folder / name).write_text("".join(json.dumps({**update, "step": step}) + "\n" for step in steps))


def test_of_two_runs_in_a_folder_its_own_is_told_and_of_one_that_went_on_all(tmp_path):
    traced(tmp_path)
    state(tmp_path / "checkpoint-4", [3.0, 2.0, 1.5, 1.2])
    state(tmp_path, [2.9, 2.8], ended=True)
    with pytest.warns(OIALRWarning, match="has two runs; its own trainer_state.json is told"):
        assert read_run(tmp_path).series("loss") == ([1, 2], [2.9, 2.8])
    state(tmp_path, [3.0, 2.0], ended=True)
    assert read_run(tmp_path).series("loss")[1] == [3.0, 2.0, 1.5, 1.2]  # the beginning of the same


def test_files_that_are_no_trace_and_states_that_were_cut_off_are_passed_over(tmp_path):
    traced(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    state(tmp_path / "checkpoint-2", [3.0, 2.0])
    state(tmp_path / "checkpoint-3", [3.0, 2.0, 1.0])
    broken = tmp_path / "checkpoint-3" / "trainer_state.json"
    broken.write_text(broken.read_text()[:40])
    with pytest.warns(OIALRWarning, match=r"checkpoint-3.*cannot be read and is passed over"):
        run = read_run(tmp_path)
    assert run.series("loss")[1] == [3.0, 2.0]
    assert [update["step"] for update in run.updates] == [2]


def test_several_traces_are_told(tmp_path):
    traced(tmp_path, "a.jsonl", steps=(1, 2))
    traced(tmp_path, "b.jsonl")
    with pytest.warns(OIALRWarning, match=r"several traces \(a.jsonl, b.jsonl\)"):
        assert len(read_run(tmp_path).updates) == 2
