"""Reading handwritten digits: a small vision transformer from scratch, once dense and once with OIALR.

python run.py --output ../../outputs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from digits import Digits, evaluate
from measure import StepClock, latencies, megabytes
from peft import get_peft_model
from show import show
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from oialr_peft import OIALRCallback, OIALRConfig, save_compressed


VIT = ViTConfig(
    image_size=8,
    patch_size=4,
    num_channels=1,
    num_labels=10,  # pyright: ignore[reportCallIssue]
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
)


def train(method: str, digits: Digits, folder: Path, seed: int, epochs: float) -> dict:
    """Train and save one model; what is shown of it. Both methods have the same start and the same batches."""
    set_seed(seed)
    model, clock = ViTForImageClassification(VIT), StepClock()
    callbacks: list[TrainerCallback] = [clock]
    if method == "OIALR":
        # A fifth of the run at full rank, then a quarter of it. One basis of each weight and all the rest train on.
        model = get_peft_model(model, OIALRConfig(delay=0.2, r=0.25, bases="longer", train_rest=True))
        callbacks.append(OIALRCallback(trace=folder / "trace.jsonl"))

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.05,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    trainer = Trainer(model, arguments, train_dataset=digits.train, callbacks=callbacks)
    trainer.train()
    trainer.save_state()  # the losses, for `oialr report`

    if method == "OIALR":
        save_compressed(model, folder / "model")  # two factors a layer; needs neither adapter nor base
    else:
        model.save_pretrained(str(folder / "model"))
    saved = ViTForImageClassification.from_pretrained(folder / "model").eval()
    return {
        "model": saved,
        "validation": evaluate(saved, digits.validation),
        "test": evaluate(saved, digits.test),
        "megabytes": megabytes(folder / "model"),
        "step": clock.last_tenth(),
        "losses": [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log],
    }


def main() -> None:
    """Train both, measure both in turns, show them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=20)
    parsed = parser.parse_args()
    digits = Digits(parsed.seed)
    found = {m: train(m, digits, parsed.output / m.lower(), parsed.seed, parsed.epochs) for m in ("dense", "OIALR")}
    for method, seconds in latencies({m: f.pop("model") for m, f in found.items()}, digits.test.images[:64]).items():
        found[method]["latency"] = seconds
    show(found, digits.trivial(), parsed.output, parsed.seed)


if __name__ == "__main__":
    main()
