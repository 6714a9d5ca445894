"""OIALRModel, the tuner: injection, saving and loading."""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from tqdm.auto import tqdm

from ..compat.peft_ import AuxiliaryTrainingWrapper, is_excluded
from ..compat.reads import reads_weight
from ..compat.transformers_ import leave_weights_alone, tie_weights
from ..config import OIALRConfig
from ..errors import tell
from ..kinds import Kind, MultiheadAttention, TakenApart, has_parts, kind_of, leave_fast_path, take_apart
from ..layer import OIALRLayer, adapted_weights, oialr_layers, weights_of
from ..memory import release_memory
from ..missed_update import UpdateWatch
from .given import as_given, note_chosen
from .reference import copied_starts, copied_weights
from .remarks import remarks
from .rules import refuse_adapter_names, refuse_beside, refuse_to_merge_shared
from .start import starting_weight
from .targets import TargetSelection, choose_targets, with_target
from .together import shared_starts


logger = logging.getLogger(__name__)


class OIALRModel(BaseTuner):
    """The tuner behind `get_peft_model(model, OIALRConfig(...))`.

    Attributes:
        selection: which layers were chosen and why others were left alone; `print(model.base_model.selection)`.
        init_errors: {module name: relative Frobenius error} of the weights that the last adapter factorised when it
            was made, in float32: rounding at full rank, what `r` leaves out below it. Also logged, with the time.
    """

    prefix: str = "oialr_"
    tuner_layer_cls = OIALRLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    selection: TargetSelection
    init_errors: dict[str, float]

    def ranks(self) -> dict[str, int]:
        """{module name: current rank} of the active adapter; min(out, in) before factorisation."""
        return {name: weight.rank for name, weight in adapted_weights(self.model).items()}

    # -- injection ---------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        self._copied = copied_weights(model, self.peft_config, adapter_name)
        given = cast(OIALRConfig, self.peft_config[adapter_name])
        config = self.peft_config[adapter_name] = as_given(given, self._copied)
        began, self.init_errors = time.perf_counter(), {}
        # A bar that shows up once an initialisation takes longer than two seconds.
        with tqdm(desc="OIALR: preparing layers", unit="layer", delay=2, leave=False) as self._progress:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        note_chosen(config)
        del self._progress, self._copied
        logger.info("%s", self.selection)
        if self.init_errors:
            release_memory()
            worst = max(self.init_errors, key=self.init_errors.__getitem__)
            logger.info(
                "OIALR: factorised %d layers in %.1f s (init=%r); largest relative error %.2g, of '%s'.",
                *(len(self.init_errors), time.perf_counter() - began, config.init, self.init_errors[worst], worst),
            )
        if (weights := weights_of(model, adapter_name)) and not (config.residual and config.lr_scale == "none"):
            from ..policy import steps_to_first_update

            first = next(iter(weights.values()))
            first.watch = UpdateWatch(first, steps_to_first_update(config))

    def _post_injection_hook(self, model: nn.Module, config: OIALRConfig, adapter_name: str) -> None:
        leave_fast_path(model)
        if config.train_rest and hasattr(model, "tie_weights"):
            self.register_load_state_dict_post_hook(tie_weights)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        refuse_to_merge_shared(self.model)

    def disable_adapter_layers(self) -> None:
        self._check_base_is_intact("disabling the adapter")
        super().disable_adapter_layers()

    def unload(self) -> nn.Module:
        self._check_base_is_intact("unloading the adapter")
        return super().unload()

    def _check_base_is_intact(self, action: str) -> None:
        for layer in oialr_layers(self.model).values():
            layer.check_base(action)

    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Any:
        return refuse_adapter_names(kwargs.get("adapter_names"))

    def delete_adapter(self, adapter_name: str) -> None:
        for layer in oialr_layers(self.model).values():
            if adapter_name in layer.weights:  # all of them before PEFT deletes from any
                layer.check_base(f"deleting the adapter {adapter_name!r}")
        super().delete_adapter(adapter_name)

    def _check_new_adapter_config(self, config: OIALRConfig) -> None:
        super()._check_new_adapter_config(config)
        if len(self.peft_config) < 2:
            return
        try:
            refuse_beside([other for other in self.peft_config.values() if isinstance(other, OIALRConfig)])
        except ValueError:
            self.peft_config = {k: v for k, v in self.peft_config.items() if v is not config}
            raise

    def _prepare_adapter_config(self, peft_config: OIALRConfig, model_config: dict) -> OIALRConfig:
        return peft_config  # target_modules=None is resolved in _prepare_model, which sees the model

    def _prepare_model(self, peft_config: OIALRConfig, model: nn.Module) -> None:
        def matches(name: str) -> bool | None:
            probe = peft_config if peft_config.target_modules is not None else with_target(peft_config, name)
            found = BaseTuner._check_target_module_exists(probe, name)
            return None if is_excluded(found) else bool(found)

        leave_weights_alone(model)
        self.selection = choose_targets(model, peft_config, matches)
        for message in remarks(model, self.selection, peft_config):
            tell(message, once=True)
        self._progress.total = len(self.selection.chosen)
        self._starts = copied_starts(self._copied) or shared_starts(model, self.selection.chosen, peft_config)

    def _check_target_module_exists(self, peft_config: OIALRConfig, key: str):  # type: ignore[override]
        if peft_config.ranks is not None:  # a saved adapter: by exact names, so that no regex of its file is run
            return key in self.selection.chosen
        found = BaseTuner._check_target_module_exists(peft_config, key)
        return found if not found or key in self.selection.chosen else False

    def _create_and_replace(
        self,
        peft_config: OIALRConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if has_parts(target):
            whole = take_apart(target)
            setattr(parent, target_name, whole)
            for name in whole.parts:
                child, key = getattr(whole, name), f"{current_key}.{name}"
                self._create_and_replace(peft_config, adapter_name, child, name, whole, key)
                getattr(whole, name).in_attention = isinstance(whole, MultiheadAttention)
            return
        # `select_targets` has checked that its kind is supported.
        layer = target if isinstance(target, OIALRLayer) else OIALRLayer(target, cast(Kind, kind_of(target)))
        layer.is_read = layer.is_read or reads_weight(parent, target_name)
        start = self._starts.pop(current_key, None) or starting_weight(
            current_key, layer.plain_base(), layer.matrix_shape, peft_config
        )
        layer.add_weight(adapter_name, residual=peft_config.residual, **start.as_weight())
        layer.rest_trains |= peft_config.train_rest
        if peft_config.frees_base:
            layer.free_base()
        if start.error is not None:
            self.init_errors[current_key] = start.error
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        self._progress.update()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, (TakenApart, AuxiliaryTrainingWrapper)):
            setattr(parent, child_name, new_module)  # PEFT's would look for the one weight of the child
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        rest: list[nn.Parameter] = []
        if any(getattr(self.peft_config[name], "train_rest", False) for name in self.active_adapters):
            frozen = {id(m.base_weight) for m in model.modules() if isinstance(m, OIALRLayer)}
            inference = any(self.peft_config[name].inference_mode for name in self.active_adapters)
            rest = [p for p in model.parameters() if p.requires_grad and not inference and id(p) not in frozen]
        super()._mark_only_adapters_as_trainable(model)
        for parameter in rest:
            parameter.requires_grad_(True)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Factors are made in float32 or better, so there is nothing to raise; without autocast they are lowered once.
        if autocast_adapter_dtype:
            residual = cast(OIALRConfig, self.peft_config[adapter_name]).residual  # whose bases are short on purpose
            return None if residual else super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in oialr_layers(self.model).values():
            if adapter_name in layer.weights:
                layer.lower_dtype(adapter_name)

    # -- saving and loading ------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: OIALRConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The adapter's tensors and BatchNorm's, with `train_rest` all the rest; notes the ranks in the config."""
        from ..checkpoint.bases import leave_out_bases
        from ..checkpoint.rest import cut_to_live, rest_keys, running_statistics  # on first use, as below
        from ..checkpoint.tensors import warn_if_broken
        from ..workers.saving import gathered

        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        others = rest_keys if config.train_rest else running_statistics
        selected.update({key: state_dict[key] for key in others(model, state_dict)})
        selected = gathered(selected)
        weights = weights_of(model, adapter_name)
        for name, weight in weights.items():
            if (rank := weight.sharded_rank) is not None:
                cut_to_live(selected, name, adapter_name, rank)
        config.ranks = {name: weight.rank if weight.is_factored else None for name, weight in weights.items()}
        config.one_sided = {name: weight.form.side for name, weight in weights.items() if weight.form.side} or None
        warn_if_broken(selected)
        return leave_out_bases(selected, config, weights)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: OIALRConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Check the file as a whole, then give every layer the rank found in it; the caller fills the tensors."""
        from ..checkpoint.bases import make_bases
        from ..checkpoint.tensors import check_file, forms_in_file

        state_dict = make_bases(state_dict, config, weights := weights_of(model, adapter_name))
        found = forms_in_file(state_dict, weights, config.one_sided or {})
        check_file(model, config, state_dict, weights)
        for name, weight in weights.items():
            weight.match(*found[name])
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
