"""The trace: nothing that happens to it costs a record or a run; the figure shows shares of the full rank."""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from oialr_peft import OIALRCallback, OIALRWarning, StabilityCallback, UpdateReport
from oialr_peft.report.plots import plot_ranks
from oialr_peft.training.trace import Trace, read_trace
from tests.training.runs import trainer


def report(step: int, rank: int = 8, **fields) -> UpdateReport:
    return UpdateReport(step, step, False, 0.1, ranks={"a": rank}, full_ranks={"a": 16}, **fields)


def test_a_line_that_a_crash_cut_off_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / "deep" / "trace.jsonl"
    Trace(path, new=True).append(report(1))
    Trace(path, new=False).append(report(2))
    path.write_bytes(path.read_bytes()[:-20])
    resumed = Trace(path, new=False)
    resumed.append(report(3))
    resumed.append(report(4))
    assert [update["step"] for update in read_trace(path)] == [1, 3, 4]
    assert path.read_bytes().count(b"\n") == 4


def test_a_line_cut_inside_a_letter_or_of_another_kind_is_left_out(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"step": 1, "name": "\xc3\n[1, 2]\n{"other": 1}\n7\n{"step": 1, "loss": 2.0}\n')
    Trace(path, new=False).append(report(2))
    assert [update["step"] for update in read_trace(path)] == [2]


def test_a_trace_that_cannot_be_written_costs_one_warning_not_the_run(tmp_path):
    (tmp_path / "file").touch()
    run = trainer(str(tmp_path), callbacks=[OIALRCallback(trace=tmp_path / "file" / "trace.jsonl")])
    with pytest.warns(OIALRWarning, match=r"file.trace\.jsonl cannot be written .*Training goes on") as caught:
        run.train()
    assert len([w for w in caught if "cannot be written" in str(w.message)]) == 1
    assert run.state.global_step == 24


def test_a_new_run_begins_a_new_trace_a_resumed_one_does_not(tmp_path):
    path = tmp_path / "trace.jsonl"
    Trace(path, new=True).append(report(1))
    Trace(path, new=False).append(report(2))
    assert len(read_trace(path)) == 2
    Trace(path, new=True)
    assert not path.exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([report(4, 3, changed={"a": [4, 3]}), report(8, 3)], [0.25, 0.1875, 0.1875]),  # started with r = 0.25
        ([report(4, 8, changed={"a": [16, 8]})], [1.0, 0.5]),
        ([report(4, 4)], [0.25, 0.25]),  # started at a quarter and was not cut
    ],
    ids=["r below 1 and a cut", "from full rank", "r below 1"],
)
def test_plotted_shares_are_of_the_full_rank(lines, expected, tmp_path, monkeypatch):
    drawn, close = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: drawn.append(figure) or close(figure))
    trace = Trace(tmp_path / "trace.jsonl", new=True)
    for line in lines:
        trace.append(line)
    plot_ranks(tmp_path / "trace.jsonl", tmp_path / "ranks.png")
    assert list(drawn[0].axes[0].get_lines()[0].get_ydata()) == pytest.approx(expected)


def test_traces_of_earlier_versions_are_drawn(tmp_path):
    line = report(4, 8, changed={"a": [16, 8]}).as_dict()
    del line["full_ranks"]
    (tmp_path / "trace.jsonl").write_text(json.dumps(line) + "\n")
    plot_ranks(tmp_path / "trace.jsonl", tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5000


def test_a_file_that_is_no_trace_is_not_removed_for_one(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "cut.jsonl").write_text(json.dumps(report(4).as_dict())[:60])  # a crash in the first line
    with pytest.raises(ValueError, match="has something else than the updates of a run"):
        Trace(tmp_path / "data.jsonl", new=True)
    assert (tmp_path / "data.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
    Trace(tmp_path / "cut.jsonl", new=True)
    assert not (tmp_path / "cut.jsonl").exists()


def test_lines_of_other_layers_or_none_are_left_out(tmp_path):
    trace = Trace(tmp_path / "trace.jsonl", new=True)
    trace.append(report(4))
    for ranks in ({}, {"b": 1}):
        trace.append(UpdateReport(5 + len(ranks), 1, False, 0.1, ranks, ranks))
    trace.append(report(8))
    assert [update["step"] for update in read_trace(tmp_path / "trace.jsonl")] == [4, 8]


def test_what_a_run_did_before_it_was_resumed_earlier_does_not_count(tmp_path):
    """Here with another interval: the steps of the branch that was left are no steps of the run."""
    trace = Trace(tmp_path / "trace.jsonl", new=True)
    for step in (4, 8, 12, 16, 10, 15):
        trace.append(report(step, step))
    assert [update["step"] for update in read_trace(tmp_path / "trace.jsonl")] == [4, 8, 10, 15]


def test_a_home_folder_is_meant_as_in_training_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Path(OIALRCallback(trace="~/run/trace.jsonl").trace) == tmp_path / "run" / "trace.jsonl"
    assert StabilityCallback("~/stability.json").path == tmp_path / "stability.json"


def test_a_relative_trace_stays_where_the_run_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = Trace("trace.jsonl", new=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trace.append(report(3))
    assert len(read_trace(tmp_path / "trace.jsonl")) == 1
