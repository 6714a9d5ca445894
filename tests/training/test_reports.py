"""What an update tells: shares, logs, and a line in words."""

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.units import short
from oialr_peft.update_report import sampled
from tests.conftest import MLP


def updated(scale: float = 1.0, **settings):
    """An updater of three layers after one update, and its report."""
    torch.manual_seed(0)
    model = MLP()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model = get_peft_model(model, OIALRConfig(update_interval=1, layer_step=1.0, **settings))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    updater = OIALRUpdater(model, optimizer)
    optimizer.step()
    return updater, updater.step()


@pytest.mark.parametrize("scale", [1e-30, 0.0], ids=["underflows", "zero"])
def test_a_weight_whose_energy_underflows_is_cut_like_any_other(scale):
    """In float32 the squares of 1e-30 are zero; an update divided by their sum."""
    _, usual = updated(sigma_cutoff=0.3)
    updater, report = updated(scale, sigma_cutoff=0.3)
    assert not report.skipped
    if scale:
        assert report.ranks == usual.ranks
        assert report.dropped == pytest.approx(usual.dropped, rel=1e-3)
    assert updater.steps == 1


def test_dropped_energy_is_in_the_logs():
    updater, report = updated(sigma_cutoff=0.5)
    assert len(report.dropped) == 3
    assert report.as_logs()["oialr/max_dropped_energy"] == max(report.dropped.values()) > 0
    assert report.full_ranks == {name: weight.full_rank for name, weight in updater.weights.items()}


def test_spectra_are_what_the_layers_hold_after_the_cut():
    updater, report = updated(sigma_cutoff=0.5)
    logs = report.as_logs()
    assert report.spectra.keys() == updater.weights.keys()
    for name, values in report.spectra.items():
        held = torch.linalg.svdvals(updater.weights[name].dense(torch.float32))[: report.ranks[name]]
        assert len(values) == min(17, report.ranks[name])
        assert [values[0], values[-1]] == pytest.approx([held[0].item(), held[-1].item()], rel=1e-4)
    last = [values[-1] / values[0] for values in report.spectra.values()]
    assert logs["oialr/spectrum_last"] == pytest.approx(sum(last) / 3)
    assert 0 < logs["oialr/spectrum_last"] <= logs["oialr/spectrum_median"] <= 1


def test_a_spectrum_is_sampled_evenly_and_over_groups():
    values = torch.arange(100, 0, -1.0)
    assert sampled(values)[::16] == [100.0, 1.0]
    assert sampled(values)[8] in (50.0, 51.0)
    assert sampled(torch.stack([values, 3 * values])) == [2 * value for value in sampled(values)]
    assert sampled(values[:1]) == [100.0]


def test_a_report_is_one_line_in_words():
    _, report = updated(sigma_cutoff=0.5)
    line = str(report)
    assert "\n" not in line
    assert line.startswith("OIALR update 1 at step 1: cut 3 of 3 layers, at most ")
    assert f"mean rank {sum(report.ranks.values()) / 3:.4g} of 17.33" in line


def test_size_is_one_number_of_the_whole_model_in_the_report_the_logs_and_the_summary():
    """Three layers of 288, 576 and 384 weights, and a head and biases of 124 values that stay."""
    updater, report = updated(sigma_cutoff=0.0, r=0.25)
    stored = sum(
        min(r * (sum(w.matrix_shape)), w.matrix_shape[0] * w.matrix_shape[1])
        for r, w in ((report.ranks[name], weight) for name, weight in updater.weights.items())
    )
    dense = sum(parameter.numel() for parameter in MLP().parameters())
    rest = dense - 288 - 576 - 384
    assert (report.compressed_bytes, report.dense_bytes) == (4 * (stored + rest), 4 * dense)
    share = report.as_logs()["oialr/compressed_share"]
    assert share == (stored + rest) / dense
    assert f"the whole model compressed is {short(report.compressed_bytes)}, {share:.0%} of dense" in str(report)
    assert f"would write {short(report.compressed_bytes)} compressed, {share:.1%} of the dense" in updater.summary()
