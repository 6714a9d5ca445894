"""The plan of a run: equal to what two real processes do, and what its numbers must satisfy."""

import json

import pytest
import torch
import transformers
from peft import get_peft_model
from rich.console import Console

from oialr_peft import OIALRConfig
from oialr_peft.plain import model_size
from oialr_peft.plan.inspect import inspect_table
from oialr_peft.plan.numbers import architecture, meta_model, plan_run
from oialr_peft.plan.speed import measure_svd_gflops
from oialr_peft.plan.update import SVD_FLOPS, plan_update
from oialr_peft.units import short
from oialr_peft.workers.plan import SvdTask, assign_owners, rounds
from tests.conftest import MODELS, tiny_bert, tiny_llama
from tests.workers.launch import results, torchrun


def plan(**kwargs):
    return plan_run(architecture(tiny_llama(), "tiny"), **{"processes": 2, "svd_gflops": 1.0, **kwargs})


def test_two_processes_reduce_send_decompose_and_hold_what_is_planned():
    runs = results(torchrun(2, "plan_worker"))
    scratch, tuning, moving = plan(rank=1.0, from_scratch=True), plan(), plan(bases="longer")
    assert runs["dense"]["step_bytes"] == scratch.dense_step_bytes
    for name, planned in (("scratch", scratch), ("fine-tuning", tuning), ("moving", moving)):
        assert runs[name]["step_bytes"] == planned.step_bytes
    held = {"dense": tuning.dense_memory, "scratch": scratch.memory, "fine-tuning": tuning.memory}
    held |= {"moving": moving.memory}
    for name, memory in held.items():
        assert runs[name]["memory"] == {kind: getattr(memory, kind) for kind in runs[name]["memory"]}
        assert memory.buckets == runs[name]["step_bytes"]
    updates = [update for name in ("scratch", "fine-tuning", "moving") for update in runs[name]["updates"]]
    expected = [scratch.factorisation, *[scratch.update] * 2, *[tuning.update] * 3, *[moving.update] * 3]
    for update, planned in zip(updates, expected, strict=True):
        assert update["bytes_sent"] == planned.bytes_sent
        assert [SVD_FLOPS * cost for cost in update["costs"]] == planned.svd_flops
    for update in runs["cuts"]["updates"][1:]:  # the ranks before and after; the first has dense shapes
        before, after = zip(*update["changed"].values(), strict=True)
        assert len(before) == len(update["ranks"])
        planned = plan_update([(rank, rank) for rank in before], after, 2, 1.0)
        assert update["bytes_sent"] == planned.bytes_sent
        assert [SVD_FLOPS * cost for cost in update["costs"]] == planned.svd_flops


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "t5", "autoformer"])
def test_the_meta_model_of_a_saved_config_is_planned_like_the_real_one(name, tmp_path):
    model = MODELS[name][0]()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    found = architecture(meta_model(str(tmp_path / "config.json")), name)
    assert found == architecture(model, name)
    for bases in ("frozen", "longer"):
        planned = plan_run(found, 4, rank=0.5, from_scratch=True, bases=bases, svd_gflops=1.0)
        adapter = get_peft_model(MODELS[name][0](), OIALRConfig(r=0.5, train_rest=True, bases=bases))
        assert planned.layers == len(adapter.base_model.ranks())
        assert planned.trainable == sum(p.numel() for p in adapter.parameters() if p.requires_grad)


def test_inspect_cuts_no_cell_on_eighty_columns(tmp_path):
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    model = architecture(meta_model(str(tmp_path)), "tiny")
    console = Console(width=80)
    with console.capture() as shown:
        console.print(inspect_table(model))
    cells = {cell.strip() for line in shown.get().splitlines() for cell in line.split("│")}
    assert {"768x768", "3072x768", "768x3072"} <= cells
    assert "…" not in shown.get()


def test_a_config_without_architectures_becomes_what_automodel_makes(tmp_path):
    tiny_bert().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("architectures", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = meta_model(str(tmp_path))
    assert type(model) is transformers.BertModel
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())


def test_work_is_shared_and_none_is_lost():
    one = plan_update([(8, 8)] * 9, [8] * 9, 1, 1.0)
    many = [plan_update([(8, 8)] * 9, [8] * 9, processes, 1.0) for processes in (2, 3, 9, 100)]
    assert one.imbalance == 1.0
    assert one.bytes_sent == 0
    for shared in many:
        assert sum(shared.svd_flops) == sum(one.svd_flops)
        assert shared.bytes_sent == 9 * 4 * (8 * 8 * 2 + 8)
    assert [update.seconds / one.seconds for update in many] == pytest.approx([5 / 9, 3 / 9, 1 / 9, 1 / 9])
    assert many[-1].imbalance == pytest.approx(100 / 9)  # nobody is faster than its largest matrix


def test_every_round_waits_for_its_slowest():
    tasks = [SvdTask(str(size), (size, size), size) for size in range(40, 20, -1)]
    costs = [task.cost for task in tasks]
    owners = assign_owners(costs, 2)
    chosen = rounds(tasks, owners)
    assert len(chosen) > 1
    assert sorted(i for places in chosen for i in places) == list(range(20))
    waited = sum(max(sum(costs[i] for i in places if owners[i] == p) for p in (0, 1)) for places in chosen)
    planned = plan_update([task.shape for task in tasks], [task.rank for task in tasks], 2, 1.0)
    assert planned.seconds == pytest.approx(SVD_FLOPS * waited / 1e9)
    assert planned.seconds >= max(planned.svd_flops) / 1e9


def test_what_is_held_is_limited_at_any_number_of_processes():
    """Weights of 70B's size: one of them is 1.2 GB of bases, all of them 380 GB."""
    shapes = [(28672, 8192), (8192, 28672), (8192, 8192), (1024, 8192)] * 20
    for processes in (1, 2, 8, 64, 1024):
        held = plan_update(shapes, [min(shape) for shape in shapes], processes, 1.0, dense=True).bytes_held
        assert held <= 1.5e9
    sigmas = [(8192, 8192)] * 40
    assert plan_update(sigmas, [8192] * 40, 64, 1.0).bytes_held <= 1.5e9


def test_groups_count_as_matrices_of_their_own():
    assert plan_update([(4, 6, 5)], [5], 1, 1.0).svd_flops == [SVD_FLOPS * 4 * 6 * 5 * 5]
    assert plan_update([(4, 6, 5)], [3], 2, 1.0).bytes_sent == 4 * 4 * 3 * (6 + 5 + 1)


def test_one_process_sends_nothing_and_fine_tuning_factorises_alone():
    single = plan(processes=1)
    assert (single.step_bytes, single.update.bytes_sent, single.memory.buckets, single.ring_factor) == (0, 0, 0, 0)
    assert plan(processes=8).factorisation == single.factorisation
    assert len(plan(processes=8, from_scratch=True).factorisation.svd_flops) == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"processes": 0}, "`processes` must be at least 1; got 0"),
        ({"rank": 0.0}, r"`rank` is a share .* got 0.0"),
        ({"rank": 1.5}, r"`rank` is a share .* got 1.5"),
        ({"svd_gflops": 0.0}, "`svd_gflops` must be above 0 and finite; got 0.0"),
        ({"update_interval": 0}, "`update_interval` must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan(**wrong)


def test_the_speed_of_svds_is_measured():
    assert 0.01 < measure_svd_gflops(128) < 1e5


def test_counts_are_shown_with_decimal_prefixes():
    assert [short(n) for n in (0, 999, 1000, 123_456, 999_600, 8.03e9, 2.5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 kB",
        "1 MB",
        "8.03 GB",
        "2.5 TB",
    ]


def test_a_plan_foresees_the_compressed_file():
    model = get_peft_model(tiny_llama(), OIALRConfig(r=0.25))
    size, found = model_size(model), plan(rank=0.25)
    assert found.compressed == size.compressed.values
    assert found.parameters == size.dense.values
    assert found.embeddings == size.embeddings.values == 48 * 16
