"""The authors' search ranges, in the Trainer's own search."""

import pytest
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, oialr_search_space
from oialr_peft.training.search import oialr_fields
from tests.conftest import tiny_llama
from tests.training.runs import dataset


optuna = pytest.importorskip("optuna")
FIELDS = {"delay": (0.068, 0.68), "update_interval": (0.0136, 0.068), "sigma_cutoff": (0.01, 0.9)}
ARGUMENTS = {"learning_rate": (5e-5, 1e-3), "weight_decay": (1e-5, 0.5), "max_grad_norm": (-1.0, 10.0)}


def test_a_search_on_disk_goes_on_and_each_trial_trains_what_it_says(tmp_path):
    made = []

    def make(trial):
        made.append(OIALRConfig(train_rest=True, **oialr_fields(trial)))
        return get_peft_model(tiny_llama(), made[-1])

    def search(trials):
        options = {"max_steps": 10, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(str(tmp_path / "runs"), per_device_train_batch_size=2, **options)
        data = {"train_dataset": dataset(8), "eval_dataset": dataset(4)}
        trainer = Trainer(model_init=make, args=arguments, callbacks=[OIALRCallback()], **data)
        storage = {"study_name": "study", "storage": f"sqlite:///{tmp_path}/study.db", "load_if_exists": True}
        return trainer.hyperparameter_search(
            hp_space=oialr_search_space, backend="optuna", direction="minimize", n_trials=trials, **storage
        )

    search(1)
    best = search(1)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(study.trials) == 2
    assert best.objective == min(trial.value for trial in study.trials)
    for trial, config in zip(study.trials, [made[1], made[3]], strict=True):
        assert set(trial.params) == set(FIELDS) | set(ARGUMENTS)
        assert all(getattr(config, name) == trial.params[name] for name in FIELDS)
        ranges = {**FIELDS, **ARGUMENTS}
        assert all(ranges[name][0] <= value <= ranges[name][1] for name, value in trial.params.items())
    assert made[0].delay == OIALRConfig().delay  # the model that the Trainer makes before the search
