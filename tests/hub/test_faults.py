"""A push that fails says so and costs nothing that was on disk."""

import sys

import pytest
from safetensors.torch import load_file


WORDS = {
    "upload": "Error while uploading 'adapter_model.safetensors'",
    "commit": "/api/models/me/no-commit/commit/main",
    "connection": "Disconnected",
}


@pytest.mark.parametrize("way", WORDS)
def test_a_failing_push_names_what_failed(hub, pushed, way):
    message = pushed[1]["fail"]["messages"][way]
    assert WORDS[way].lower() in message.lower()
    if sys.version_info >= (3, 11):  # from there on errors take notes
        assert f"The push to 'me/no-{way}' failed." in message
    assert hub.repos[f"me/no-{way}"] == {}


def test_saved_files_outlive_failing_pushes(pushed):
    saved = pushed[0] / "saved"
    assert {path.name for path in saved.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (saved / "README.md").read_text() == "My own words."
    assert load_file(saved / "adapter_model.safetensors")
