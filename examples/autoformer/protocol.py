"""The ETT benchmark's training protocol as a transformers Trainer."""

import time
from pathlib import Path
from typing import Any

import torch
from settings import Settings
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments


class BenchmarkTrainer(Trainer):
    """Trainer with the benchmark's schedule (constant rate in epochs 1 and 2, then halved every epoch).

    Training drops the last, incomplete batch of an epoch; evaluation sees every window.
    """

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        self.args.dataloader_drop_last = False  # one flag rules training and evaluation
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            steps_per_epoch = len(self.get_train_dataloader())
            scheduled: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                scheduled, lambda step: 0.5 ** max(0, step // steps_per_epoch - 1)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


class TrainingClock(TrainerCallback):
    """Measures the time of the training steps: forward, backward, optimizer, basis updates, not evaluation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._start = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._start


def training_arguments(settings: Settings, folder: Path) -> TrainingArguments:
    """Returns Adam without weight decay or clipping, in float32, with an evaluation after every epoch."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=8 * settings.batch_size,
        learning_rate=settings.learning_rate,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="epoch" if settings.patience else "no",
        save_total_limit=1 if settings.patience else None,
        load_best_model_at_end=settings.patience > 0,
        restore_callback_states_from_checkpoint=True,  # how long patience has lasted, in a run that is resumed
        metric_for_best_model="mse",
        greater_is_better=False,
        logging_steps=50,
        label_names=["labels"],  # otherwise evaluation calls the loss with labels=None
        remove_unused_columns=False,  # the columns only come into being in the dataset's transform
        dataloader_drop_last=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        report_to="none",
        seed=settings.seed,
    )
