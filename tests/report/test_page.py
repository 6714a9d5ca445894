"""`oialr report`: one page about a real run, with all that it recorded and nothing from elsewhere."""

import re
from xml.etree import ElementTree

import pytest

from oialr_peft import OIALRCallback
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


@pytest.mark.parametrize(("made", "message"), [(False, "There is no run at"), (True, "tells of no OIALR update")])
def test_a_folder_without_a_run_is_refused(made, message, tmp_path, capsys):
    folder = tmp_path / "run"
    if made:
        trainer(str(folder), callbacks=[OIALRCallback()], max_steps=3).save_state()
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()
