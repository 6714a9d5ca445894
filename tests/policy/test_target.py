"""Ranks for a size: spectra in, ranks out."""

import math

import pytest
import torch

from oialr_peft.linalg import stored_size
from oialr_peft.policy import Approach, LayerFacts, TargetSize


SHAPES = {"wide": (24, 48), "square": (32, 32), "tall": (64, 16), "groups": (2, 16, 20)}
NOW = Approach(last=0, interval=1)


def spectrum(shape: tuple[int, ...], decay: float) -> torch.Tensor:
    *groups, rows, cols = shape
    return (decay ** torch.arange(min(rows, cols), dtype=torch.float32)).expand(*groups, -1)


def layers(decay: float = 0.9):
    spectra = {name: spectrum(shape, decay) for name, shape in SHAPES.items()}
    return spectra, {n: LayerFacts(s, min(s[-2:]), min(s[-2:])) for n, s in SHAPES.items()}


def held(ranks: dict[str, int], facts: dict[str, LayerFacts], rest: int = 0) -> int:
    return rest + sum(stored_size(facts[name].shape, rank) for name, rank in ranks.items())


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
@pytest.mark.parametrize("decay", [1.0, 0.9, 0.6])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_size_is_met_to_the_last_rank(share, decay, multiple):
    spectra, facts = layers(decay)
    rule = TargetSize(share, 500, NOW, multiple=multiple)
    ranks = rule.choose(spectra, facts, step=1)
    dense = 500 + sum(map(math.prod, SHAPES.values()))
    assert all(rank % multiple == 0 or rank == facts[name].rank for name, rank in ranks.items())
    over = {n: held({**ranks, n: min(r + multiple, facts[n].rank)}, facts, 500) for n, r in ranks.items()}
    assert held(ranks, facts, 500) <= share * dense
    assert all(size > share * dense for name, size in over.items() if ranks[name] < facts[name].rank)


def test_the_unit_of_the_spectra_does_not_count():
    """Weighted by gradients they may be as small as those."""
    spectra, facts = layers()
    rule = TargetSize(0.5, 0, NOW)
    for unit in (1e-12, 1e9):
        other = {name: values.double() * unit for name, values in spectra.items()}
        assert rule.choose(other, facts, 1) == rule.choose(spectra, facts, 1)


def test_of_two_like_layers_the_one_that_needs_fewer_directions_gets_fewer():
    facts = {name: LayerFacts((32, 32), 32, 32) for name in ("steep", "flat")}
    ranks = TargetSize(0.4, 0, NOW).choose(
        {"steep": spectrum((32, 32), 0.7), "flat": spectrum((32, 32), 0.95)}, facts, 1
    )
    assert 2 * ranks["steep"] < ranks["flat"]


def test_of_two_layers_of_one_shape_of_spectrum_the_larger_one_keeps_more():
    facts = {name: LayerFacts((32, 32), 32, 32) for name in ("large", "small")}
    values = spectrum((32, 32), 0.9)
    ranks = TargetSize(0.4, 0, NOW).choose({"large": 3 * values, "small": values}, facts, 1)
    assert ranks["large"] > ranks["small"] > 1


def test_no_layer_goes_below_its_floor_or_grows():
    spectra, facts = layers(0.5)
    ranks = TargetSize(0.2, 0, NOW, min_rank=0.25, multiple=3).choose(spectra, facts, 1)
    assert {name: rank for name, rank in ranks.items() if rank < math.ceil(facts[name].full_rank / 4)} == {}
    cut = {name: values[..., : ranks[name]] for name, values in spectra.items()}
    fewer = {name: LayerFacts(fact.shape, ranks[name], fact.full_rank) for name, fact in facts.items()}
    assert TargetSize(0.9, 0, NOW).choose(cut, fewer, 1) == ranks  # small enough: nothing is cut, nothing is raised


def test_layers_without_a_spectrum_count_as_they_are():
    spectra, facts = layers()
    del spectra["square"]  # no SVD could be had
    ranks = TargetSize(0.5, 0, NOW).choose(spectra, facts, 1)
    assert "square" not in ranks
    assert held({**ranks, "square": 32}, facts) <= 0.5 * sum(map(math.prod, SHAPES.values()))


def test_a_weight_of_zeros_that_is_still_to_be_trained_keeps_its_share():
    facts = {name: LayerFacts((32, 32), 32, 32) for name in ("zero", "flat")}
    ranks = TargetSize(0.5, 0, NOW).choose({"zero": torch.zeros(32), "flat": torch.ones(32)}, facts, 1)
    assert ranks == {"zero": 8, "flat": 8}


def test_the_way_is_gone_by_its_last_update():
    """The cubic: a rank that falls from 1,000 to 0 in 10 updates, whatever is asked between."""
    approach, rank, seen = Approach(last=100, interval=10), 1000.0, []
    for step in range(10, 131, 10):
        rank *= 1 - approach.way(step)
        seen.append(rank)
    assert seen[:10] == pytest.approx([1000 * (1 - i / 10) ** 3 for i in range(1, 11)])
    assert seen[9:] == [0.0] * 4


def test_ranks_come_down_over_the_updates_and_end_at_the_size():
    spectra, facts = layers()
    rule, seen = TargetSize(0.4, 100, Approach(last=50, interval=10)), []
    for step in range(10, 71, 10):
        ranks = rule.choose(spectra, facts, step)
        spectra = {name: values[..., : ranks[name]] for name, values in spectra.items()}
        facts = {name: LayerFacts(fact.shape, ranks[name], fact.full_rank) for name, fact in facts.items()}
        seen.append(sum(ranks.values()))
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 5
    dense = 100 + sum(map(math.prod, SHAPES.values()))
    assert 0.4 * dense - min(32 + 32, 24 + 48) < held(ranks, facts, 100) <= 0.4 * dense
