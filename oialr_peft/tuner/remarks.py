"""What is said about the layers that were chosen, beside what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ..compat.torch_ import has_hooks
from ..config import OIALRConfig
from ..kinds import has_parts, own_parameters
from ..layer import OIALRLayer
from .targets import TargetSelection


UNCOVERED = 0.1  # the share of a model's parameters from which on it is said that no kind of layer covers them


def remarks(model: nn.Module, selection: TargetSelection, config: OIALRConfig) -> Iterator[str]:
    """Sentences for warnings, before the layers are replaced."""
    if message := uncovered_share(model, selection):
        yield message
    layers = {name: model.get_submodule(name) for name in selection.chosen}
    hooked = [name for name, layer in layers.items() if has_hooks(layer) and _is_passed_over(layer, config)]
    if hooked:
        yield (
            f"{len(hooked)} of the layers that OIALR factorises have hooks, first '{hooked[0]}'. They are not called "
            "any more, since the factors stand in the place of the layer. Register them after `get_peft_model`, on "
            "the layer that then has this name in `model.base_model.model`."
        )


def _is_passed_over(layer: nn.Module, config: OIALRConfig) -> bool:
    """Whether a layer is not called any more. Hooks of embeddings only make outputs want a gradient, as they do."""
    if isinstance(layer, (OIALRLayer, nn.Embedding)):
        return False
    return not config.residual or has_parts(layer)


def uncovered_share(model: nn.Module, selection: TargetSelection) -> str | None:
    """A sentence where a tenth of the model or more is in modules of no kind of layer, so that it stays dense."""
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes: Counter[str] = Counter()
    for name in selection.uncovered:
        module = model.get_submodule(name)
        sizes[type(module).__name__] += sum(p.numel() for p in own_parameters(module))
    if not sizes or sizes.total() < UNCOVERED * total:
        return None
    kind, name = sizes.most_common(1)[0][0], selection.uncovered[0]
    return (
        f"{sizes.total() / total:.0%} of this model's parameters stay dense: they are in {len(selection.uncovered)} "
        f"modules that OIALR cannot factorise, most of them {kind} (first '{name}'). They are "
        "frozen, or train dense with `train_rest`, and compressed models hold them in full. "
        "`print(model.base_model.selection)` lists them; named in `exclude_modules` they are no news."
    )
