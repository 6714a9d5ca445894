"""The ranges of the authors' hyper-parameter search, for the Trainer's `hyperparameter_search`."""

from __future__ import annotations

from typing import Any


def oialr_search_space(trial: Any) -> dict[str, float]:
    """What one trial of Optuna tries of the TrainingArguments, in the ranges of the authors' search.

    `learning_rate` 5e-5 to 1e-3, `weight_decay` 1e-5 to 0.5, `max_grad_norm` -1 to 10 (0 and below: no clipping). The
    other ranges of theirs belong to timm's scheduler. Hand the function itself to the Trainer, and make the model with
    `oialr_fields`:

    ```python
    trainer = Trainer(model_init=lambda trial: get_peft_model(make(), OIALRConfig(**oialr_fields(trial))), ...)
    trainer.hyperparameter_search(hp_space=oialr_search_space, backend="optuna", direction="minimize", n_trials=20)
    ```

    Give these three as fractions in the TrainingArguments (`weight_decay=0.0`): transformers casts what a trial tries
    to the type that is there, so a whole number would round it.

    Args:
        trial: an `optuna.Trial`.
    """
    oialr_fields(trial)  # so that every process of a trial is told of them too
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 1e-3, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 0.5, log=True),
        "max_grad_norm": trial.suggest_float("max_grad_norm", -1.0, 10.0),
    }


def oialr_fields(trial: Any) -> dict[str, float]:
    """What the same trial tries of `OIALRConfig`: `delay`, `update_interval` and `sigma_cutoff`.

    The authors searched delays of 1000 to 10000 steps and intervals of 200 to 1000 with runs of 14,700 (300 epochs of
    49); here they are the same shares of any run. `sigma_cutoff` 0.01 to 0.9.

    Args:
        trial: an `optuna.Trial`; `None`, as the Trainer has it for the model that it makes before the search, gives
            the defaults.
    """
    if trial is None:
        return {}
    return {
        "delay": trial.suggest_float("delay", 0.068, 0.68),
        "update_interval": trial.suggest_float("update_interval", 0.0136, 0.068),
        "sigma_cutoff": trial.suggest_float("sigma_cutoff", 0.01, 0.9),
    }
