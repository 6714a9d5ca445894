"""What the card says, and what it leaves alone."""

import ast
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from peft import get_peft_model

from oialr_peft import OIALRConfig, rank_report
from oialr_peft.cards import card_text, empty_section, write_card
from tests.conftest import MLP, tiny_bert, tiny_llama, tiny_vit
from tests.hub.server import metadata_errors


HUB, SCRATCH = "some-org/some-base", ""


def adapted(base=None, name: str = SCRATCH, **settings):
    """A model with an OIALR adapter whose base was loaded from `name`."""
    base = tiny_llama() if base is None else base
    base.name_or_path = base.config._name_or_path = name
    return get_peft_model(base, OIALRConfig(**{"task_type": "CAUSAL_LM", "r": 0.25, **settings}))


@pytest.fixture
def local(tmp_path):
    """The path of a base saved on this machine."""
    tiny_llama().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


# -- metadata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "compressed"])
@pytest.mark.parametrize("origin", ["hub", "local", "relative", "gone", "scratch"])
def test_the_hub_accepts_the_metadata_and_no_path_leaks(kind, origin, local, monkeypatch):
    monkeypatch.chdir(Path(local).parent.parent)
    relative = "/".join(Path(local).parts[-2:])
    names = {"hub": HUB, "local": local, "relative": relative, "gone": "/not/here/any-more", "scratch": SCRATCH}
    name = names[origin]
    text = card_text(adapted(name=name), kind)
    assert metadata_errors(text) == []
    data = ModelCard(text).data
    assert data.base_model == (HUB if origin == "hub" else None)
    relation = {"adapter": "adapter", "compressed": "finetune"}[kind]
    assert data.get("base_model_relation") == (relation if origin == "hub" else None)
    assert data.library_name == {"adapter": "peft", "compressed": "transformers"}[kind]
    assert "oialr" in data.tags
    assert "base_model: ''" not in text
    assert origin == "hub" or not name or name not in text


def test_the_rules_of_the_tests_hub_refuse_what_the_hub_refuses():
    for wrong in ("base_model: ''", "base_model: /home/me/base", "tags: one", "base_model_relation: child"):
        assert metadata_errors(f"---\n{wrong}\n---\n"), wrong


@pytest.mark.parametrize(
    ("base", "task", "tag"),
    [
        (tiny_llama, "CAUSAL_LM", "text-generation"),
        (tiny_bert, "SEQ_CLS", "text-classification"),
        (tiny_vit, None, None),
    ],
)
def test_the_pipeline_tag_follows_the_task_type(base, task, tag):
    assert ModelCard(card_text(adapted(base(), task_type=task))).data.pipeline_tag == tag


# -- text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "compressed"])
@pytest.mark.parametrize("name", [HUB, SCRATCH])
def test_the_code_block_is_python_and_imports_us_first(kind, name):
    text = card_text(adapted(name=name), kind, repo_id="me/mine")
    code = ast.parse(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    assert ast.unparse(code.body[0]) == "import oialr_peft"
    assert ast.unparse(code.body[-1]).endswith("'me/mine')")


def test_a_class_of_the_users_own_is_not_imported_from_transformers():
    text = card_text(get_peft_model(MLP(), OIALRConfig(train_rest=True)))
    assert "base = ...  # any MLP of the same shape" in text
    assert "from transformers" not in text


def test_the_table_is_that_of_the_rank_report():
    model = adapted(r=3)
    text = card_text(model)
    for layer in rank_report(model).layers:
        rows, cols = layer.shape
        held = 3 * (rows + cols) + 9
        shape = f"{rows}x{cols}"
        row = f"| `{layer.name}` | {shape} | 3 | {3 / min(rows, cols):.0%} | {held:,} | {held / (rows * cols):.0%} |"
        assert row in text


def test_a_compressed_layer_is_dense_where_that_is_smaller():
    text = card_text(adapted(r=None), "compressed")
    assert text.count("| dense | 100% |") == len(rank_report(adapted(r=None)).layers)
    assert "100.0% of their 4,608 dense ones" in text


def test_settings_results_and_versions():
    text = card_text(adapted(update_interval=7, exclude_modules=["k_proj"]), results={"eval_loss": 0.25})
    settings = re.findall(r"^- `(\w+)`: `(.*)`$", text, re.MULTILINE)
    assert settings == [("exclude_modules", "['k_proj']"), ("r", "0.25"), ("update_interval", "7")]
    assert "| eval_loss | 0.25 |" in text
    assert re.search(r"oialr-peft \S+, peft \S+, transformers \S+, torch \S+", text)
    assert "## Results" not in card_text(adapted())
    assert "All settings are the defaults" in card_text(adapted(r=None))


# -- a user's README -------------------------------------------------------------------------------------------


def test_words_outside_our_section_stay_and_the_section_is_refreshed():
    old = card_text(adapted(r=5)).replace("\n# ", "\nMine above\n\n# ").replace("- oialr\n", "- oialr\n- mine\n")
    old = old.replace("library_name", "license: mit\nlibrary_name") + "\nMine below\n"
    new = card_text(adapted(r=2), existing=old)
    marks = re.compile("<!-- oialr_peft: begin.*end -->", re.DOTALL)
    assert marks.split(ModelCard(new).text) == marks.split(ModelCard(old).text) != [ModelCard(old).text]
    assert "`r`: `2`" in new
    assert "`r`: `5`" not in new
    data = ModelCard(new).data
    assert data.license == "mit"
    assert "mine" in data.tags


def test_text_without_our_marks_gets_missing_metadata_only():
    old = "---\nlicense: mit\nbase_model: mine/base\ntags:\n- mine\n---\r\n# Mine\r\nwords"
    new = card_text(adapted(name=HUB), existing=old)
    card = ModelCard(new)
    assert card.text == "# Mine\r\nwords"
    assert (card.data.license, card.data.base_model, card.data.tags[0]) == ("mit", "mine/base", "mine")
    assert {"peft", "oialr"} <= set(card.data.tags)
    assert card_text(adapted(name=HUB), existing=new) == new


def test_an_empty_pair_of_marks_is_filled():
    new = card_text(
        adapted(), existing="---\nlicense: mit\n---\nMine\n<!-- oialr_peft: begin --><!-- oialr_peft: end -->"
    )
    assert ModelCard(new).text.startswith("Mine\n<!-- oialr_peft: begin (")
    assert "## Ranks and size" in new


@pytest.mark.parametrize("name", [HUB, SCRATCH])
def test_a_base_that_the_hub_refuses_is_replaced_or_removed(name):
    new = card_text(adapted(name=name), existing="---\nbase_model: /home/me/base\n---\nMine")
    assert metadata_errors(new) == []
    assert ModelCard(new).data.base_model == (name or None)


def test_the_blank_form_is_replaced_but_not_once_something_is_filled_in():
    blank = str(ModelCard.from_template(ModelCardData(tags=["mine"])))
    new = card_text(adapted(), existing=blank)
    assert "More Information Needed" not in new
    assert "mine" in ModelCard(new).data.tags
    filled = blank.replace("[More Information Needed]", "Me", 1)
    assert ModelCard(card_text(adapted(), existing=filled)).text == ModelCard(filled).text


def test_an_edited_readme_on_disk_stays_when_the_model_is_saved(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags:\n- oialr\n---\nMine\n")
    model = adapted(name=HUB)
    model.save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").text == "Mine\n"
    before = (tmp_path / "README.md").stat().st_mtime_ns
    write_card(model, tmp_path)
    assert (tmp_path / "README.md").stat().st_mtime_ns == before


def test_a_section_is_emptied_and_filled_again_and_other_words_stay(tmp_path):
    path = tmp_path / "README.md"
    empty_section(tmp_path)
    assert not path.exists()
    path.write_bytes(b"Mine\r\nalone")
    empty_section(tmp_path)
    assert path.read_bytes() == b"Mine\r\nalone"
    written = card_text(adapted(), "compressed") + "\nMine below\n"
    path.write_text(written)
    empty_section(tmp_path)
    left = path.read_text()
    assert "two small factors" not in left
    assert "## Ranks" not in left
    assert left.endswith("\nMine below\n")
    assert ModelCard(left).data.to_dict() == ModelCard(written).data.to_dict()
    assert card_text(adapted(), "compressed", existing=left) == written
