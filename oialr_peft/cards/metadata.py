"""The metadata of a card: what the Hub accepts, and nothing of the machine it was made on."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from .facts import CardFacts, hub_id


def metadata(facts: CardFacts) -> ModelCardData:
    """The card's own metadata; `base_model` only where the base is on the Hub, since the Hub refuses paths and ''."""
    adapter = facts.kind == "adapter"
    tags = ["oialr", *(["peft"] if adapter else []), *([facts.library] if facts.library else []), *facts.tags]
    if adapter and facts.base:
        tags.append(f"base_model:adapter:{facts.base}")  # as PEFT: inference providers look for it
    return ModelCardData(
        library_name="peft" if adapter else (facts.library or "transformers"),
        tags=sorted(set(tags)),
        pipeline_tag=facts.pipeline_tag,
        base_model=facts.base,
        base_model_relation=(("adapter" if adapter else "finetune") if facts.base else None),
    )


def complete(data: ModelCardData, own: ModelCardData) -> None:
    """Add to `data` what it lacks; a `base_model` that the Hub would refuse counts as lacking. Changes `data`.

    `library_name` is set in any case: the Trainer writes "transformers", on which the Hub shows code that cannot load
    an adapter, and on which the Trainer's next card would leave ours out.
    """
    data.library_name = own.library_name
    named = data.base_model if isinstance(data.base_model, list) else [data.base_model]
    data.base_model = data.base_model if all(hub_id(name) for name in named) else own.base_model
    for key, value in own.to_dict().items():
        if key == "tags":
            data.tags = [*(data.tags or []), *(tag for tag in value if tag not in (data.tags or []))]
        elif data.get(key) is None:
            data[key] = value
