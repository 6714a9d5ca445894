"""Damaged and hostile trainer states and READMEs."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater
from oialr_peft.cards import card_text, write_card
from oialr_peft.checkpoint import last_complete_checkpoint
from tests.conftest import MLP

from .damage import BOMB, DEEP, VALUES, text_of
from .judge import judged
from .test_files import check


BEGIN, END = "<!-- oialr_peft: begin -->", "<!-- oialr_peft: end -->"
STATES = {
    **{f"the state is {what}": value for what, value in VALUES.items()},
    **{f"steps is {what}": {"steps": value} for what, value in VALUES.items()},
    **{f"live_ranks is {what}": {"steps": 4, "live_ranks": value} for what, value in VALUES.items()},
    **{f"a live rank is {what}": {"steps": 4, "live_ranks": {"middle": value}} for what, value in VALUES.items()},
    "a live rank of 0": {"steps": 4, "live_ranks": {"middle": 0}},
    "a live rank of 1": {"steps": 4, "live_ranks": {"middle": 1}},
}
SOUND = {
    *("a live rank of 1", "steps is a number", "live_ranks is an empty object", "live_ranks is an object of lists"),
    *("a live rank is a number",),
}


def updater():
    model = get_peft_model(MLP(), OIALRConfig(r=0.5))
    return OIALRUpdater(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))


def state_verdicts(every: int):
    live = updater()
    ranks = {name: weight.rank for name, weight in live.weights.items()}

    def attempt(case: str, state: object) -> bool:
        """Whether a sound state is taken and no rank moves: shapes tell the ranks of layers that are not sharded."""
        live.load_state_dict(state)  # type: ignore[arg-type]
        unmoved = {name: weight.rank for name, weight in live.weights.items()} == ranks
        return unmoved and case in SOUND

    yield from (
        judged(case, lambda c=case, s=s: attempt(c, s), ("trainer_state.json",))
        for case, s in list(STATES.items())[::every]
    )
    for what, value in list(VALUES.items())[::every]:
        for place in ("callback", "attributes", "progress"):
            saved: object = value
            for name in {"callback": (), "attributes": ("attributes",), "progress": ("progress", "attributes")}[place]:
                saved = {name: saved}
            state = SimpleNamespace(global_step=4, stateful_callbacks={"OIALRCallback": saved})
            yield judged(
                f"{place} is {what}",
                lambda state=state: bool(OIALRCallback()._progress_of(None, state)) or True,
                ("trainer_state.json",),
            )


def checkpoint_verdicts(folder):
    for step in (2, 4):
        (folder / f"checkpoint-{step}").mkdir()
        save_file({"x": torch.ones(2)}, folder / f"checkpoint-{step}" / "adapter_model.safetensors")
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    newest = folder / "checkpoint-4"
    sound = (newest / "trainer_state.json").read_bytes()
    for case, change in text_of("trainer_state.json"):
        change(newest)
        yield judged(case, lambda: last_complete_checkpoint(folder) == str(folder / "checkpoint-2"), ())
        (newest / "trainer_state.json").write_bytes(sound)
    for name in ("checkpoint-4-backup", "checkpoint-5.tmp", "checkpoint-", "checkpoint-x", "checkpoint-²"):
        (folder / name).mkdir()
        yield judged(name, lambda: last_complete_checkpoint(folder) == str(newest), ())
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "trainer_state.json").write_bytes(sound)
    yield judged("without weights", lambda: last_complete_checkpoint(folder) == str(newest), ())
    (folder / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"\x08")
    yield judged("with half the weights", lambda: last_complete_checkpoint(folder) == str(newest), ())


READMES = {
    "begin marks": BEGIN * 50_000,
    "begin marks and one end": BEGIN * 50_000 + END,
    "end marks": END * 50_000,
    "pairs": (BEGIN + END) * 2_000,
    "half marks": "<!-- oialr_peft: begin" * 50_000,
    "an alias bomb": "---\na: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 9}*a]\n" for i in range(9)) + "---\n",
    "nested aliases": "---\na0: &a0 [1]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))
    + "---\n",
    "newlines": "---\n" + "\n" * 200_000 + "a: 1\n---\n",
    "dashes": "---\n" * 50_000,
    "open metadata": "---\n" + "a: 1\n" * 50_000,
    "deep metadata": f"---\na: {DEEP[:3000]}\n---\n",
    "tags of a number": "---\ntags: 5\n---\n",
    "tags of objects": "---\ntags: [{a: 1}]\n---\n",
    "base of an object": "---\nbase_model: {a: 1}\n---\n",
    "base of a number": "---\nbase_model: 5\n---\n",
    "a list": "---\n- 1\n---\n",
    "a Python object": "---\na: !!python/object/apply:os.system ['true']\n---\n",
    "a date": "---\na: 2001-01-01\n---\n",
    "a library of a list": "---\nlibrary_name: [a]\n---\n",
    "results of words": "---\nmodel-index: words\n---\n",
    "templates": "{{ 7 * 7 }} {% for i in range(10**9) %}{% endfor %}",
    "nothing": "",
    "spaces": " " * 200_000,
    "carriage returns": "---\r\nlicense: mit\r\n---\r\nMine\r\n",
}
BYTES = {"not UTF-8": b"\xff\xfe words", "zeros": b"\0" * 1000, "a BOM": b"\xef\xbb\xbf---\nlicense: mit\n---\nMine"}


def card_verdicts(tmp_path, every: int):
    model = get_peft_model(MLP(), OIALRConfig(r=0.5))

    def attempt(number: int, data: bytes) -> bool:
        """Whether it is left as it was, or refreshed with what the user wrote outside of our sections kept."""
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "README.md").write_bytes(data)
        write_card(model, folder)
        after = (folder / "README.md").read_bytes()
        has_section = END.encode() in data.partition(BEGIN.encode())[2]
        kept = (b"Mine" in after) == (b"Mine" in data)
        return after == data or (kept and (b"Ranks and size" in after) == has_section)

    readmes = {**{case: text.encode() for case, text in READMES.items()}, **BYTES}
    for number, (case, data) in list(enumerate(readmes.items()))[::every]:
        yield judged(f"README of {case}", lambda n=number, d=data: attempt(n, d), ())
        section = data + f"\n{BEGIN}old{END}\nMine".encode()
        yield judged(f"README of {case} and ours", lambda n=1000 + number, d=section: attempt(n, d), ())


class Odd(torch.nn.Module):
    """Layer names that would end the section of the card, a table's cell, or backticks."""

    def __init__(self) -> None:
        super().__init__()
        for name in (END.replace(".", ""), "a|b", "a`b", "a\nb", BEGIN):
            self.add_module(name, torch.nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def test_names_cannot_end_the_section():
    model = get_peft_model(Odd(), OIALRConfig(r=2, target_modules=[name for name, _ in Odd().named_children()]))
    model.peft_config["default"].rank_pattern = {f"{END}|`": 3}
    text = card_text(model)
    assert text.count(END) == 1
    assert card_text(model, existing=text) == text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 5
    assert all(row.replace("\\|", "").count("|") == 7 for row in rows)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_states(every):
    check(list(state_verdicts(every)))


def test_checkpoints(tmp_path):
    found = list(checkpoint_verdicts(tmp_path))
    assert {verdict.outcome for verdict in found} == {"right"}, found


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_cards(every, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(card_verdicts(tmp_path, every))
    assert {verdict.outcome for verdict in found} == {"right"}, [v for v in found if v.outcome != "right"]


def test_no_regex_of_a_saved_adapter_is_run(tmp_path, monkeypatch):
    """Not at loading, nor when the loaded adapter is saved again."""
    from peft import PeftModel

    get_peft_model(MLP(), OIALRConfig(delay=5, keep_base_weights=True)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"target_modules": BOMB, "exclude_modules": BOMB, "rank_pattern": {BOMB: 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="regexes are not run"):
        model = PeftModel.from_pretrained(MLP(), tmp_path)
    loaded = model.peft_config["default"]
    assert (loaded.target_modules, loaded.exclude_modules, loaded.rank_pattern) == (set(config["ranks"]), None, {})
    model.save_pretrained(tmp_path / "again")
