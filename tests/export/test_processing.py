"""Whether a place has a tokenizer or processor is told by its files, in folders and on the Hub."""

import pytest
import transformers

from oialr_peft.export.processing import has_processing, processing_of
from tests.conftest import tiny_bert
from tests.neighbours.test_libraries import tokenizer


@pytest.fixture
def bare(tmp_path):
    """A folder with a config.json alone, of which transformers 5 makes an empty tokenizer."""
    tiny_bert().config.save_pretrained(tmp_path / "bare")
    return str(tmp_path / "bare")


def test_a_place_without_files_has_none_and_the_next_one_is_asked(bare, tmp_path):
    tokenizer().save_pretrained(tmp_path / "full")
    assert not has_processing(bare)
    assert processing_of(bare, "no-one/no-such-repository", str(tmp_path / "nowhere")) is None
    found = processing_of(bare, str(tmp_path / "full"))
    assert found("the film is good")["input_ids"] == tokenizer()("the film is good")["input_ids"]


def test_a_vocabulary_alone_is_enough(bare, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(words))
    assert has_processing(bare)
    assert processing_of(bare)("film")["input_ids"] == [2, 5, 3]


def test_an_image_processor_is_one_and_no_tokenizer_is_made_up_beside_it(tmp_path):
    transformers.CLIPConfig().save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    assert has_processing(tmp_path)
    assert not hasattr(processing_of(str(tmp_path)), "tokenizer")


def test_a_repository_in_the_cache_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)  # transformers 4
    for name, files in (("full", ["config.json", "spiece.model"]), ("empty", ["config.json"])):
        folder = tmp_path / f"models--me--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("1" * 40)
        (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
        for file in files:
            (folder / "snapshots" / ("1" * 40) / file).write_text("{}")
    assert has_processing("me/full")
    assert not has_processing("me/empty")
