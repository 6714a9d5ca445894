"""Pushed by one process, pulled by another that has nothing but the repository's id."""

from huggingface_hub import ModelCard

from .server import metadata_errors


def test_the_pushed_files_and_card(hub, pushed):
    files = hub.repos["me/adapter"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "POST /lfs/me/adapter/verify" in hub.requests
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/base")
    assert card.data.get("base_model_relation") == "adapter"
    assert {"of-the-user", "oialr", "peft"} <= set(card.data.tags)
    assert "More Information Needed" not in card.text
    for name, rank in pushed[1]["push"]["ranks"].items():
        row = next(line for line in card.text.splitlines() if line.startswith(f"| `{name}` "))
        assert f"| {rank} |" in row


def test_the_code_on_the_card_gives_the_same_logits_in_a_fresh_process(pushed, run_jobs):
    found = run_jobs(pushed[0], "pull")["pull"]
    assert found["me/adapter"] == 0.0
    assert found["me/merged"] < 1e-5
    assert found["me/small"] < 1e-5


def test_the_compressed_repository_holds_a_whole_small_model_and_its_card(hub, pushed):
    files = hub.repos["me/small"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)
    assert not any(name.startswith("adapter") for name in files)
    assert metadata_errors(files["README.md"].decode()) == []
    assert "import oialr_peft" in files["README.md"].decode()
    assert hub.private == {"me/small"}


def test_a_compressed_push_replaces_the_adapter_and_takes_nothing_else_along(hub, pushed):
    assert set(hub.repos["me/replaced"]) == {"README.md", "config.json", "generation_config.json", "model.safetensors"}


def test_a_readme_edited_on_the_hub_keeps_its_text(hub, pushed):
    text = hub.repos["me/edited"]["README.md"].decode()
    assert "# Mine\n\nMy words.\n" in text
    assert text.count("oialr_peft: begin") == 1
    assert {"my-tag", "oialr"} <= set(ModelCard(text).data.tags)


def test_the_trainers_push_keeps_our_section(hub, pushed):
    folder, jobs = pushed
    for path in ("out/README.md", "out/checkpoint-2/README.md"):
        assert metadata_errors((folder / path).read_text()) == []
    files = hub.repos["me/trained"]
    assert "adapter_model.safetensors" in files
    text = files["README.md"].decode()
    assert "Training hyperparameters" in text
    assert text.count("import oialr_peft") == 1
    assert all(f"| `{name}` " in text for name in jobs["trainer"]["ranks"])
    card = ModelCard(text)
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert {"oialr", "generated_from_trainer"} <= set(card.data.tags)
