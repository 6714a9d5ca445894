"""A push that fails says so and costs nothing that was on disk."""

import sys

import pytest
from safetensors.torch import load_file


WORDS = {
    "upload": ("adapter_model.safetensors", "500 Server Error"),
    "commit": ("500 Server Error", "me/no-commit/commit"),
    "connection": ("disconnected",),
}
if sys.version_info >= (3, 11):
    WORDS["connection"] += ("The push to 'me/no-connection' failed.",)


@pytest.mark.parametrize("way", WORDS)
def test_a_failing_push_names_what_failed(hub, pushed, way):
    message = pushed[1]["fail"]["messages"][way]
    assert all(word in message for word in WORDS[way]), message
    assert hub.repos[f"me/no-{way}"] == {}


def test_saved_files_outlive_failing_pushes(pushed):
    saved = pushed[0] / "saved"
    assert {path.name for path in saved.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (saved / "README.md").read_text() == "My own words."
    assert load_file(saved / "adapter_model.safetensors")
