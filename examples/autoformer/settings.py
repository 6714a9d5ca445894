"""Every choice of one training run, as command-line flags and as the record in its results."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


# glibc gives large buffers back to the system after every use; keeping them saves a tenth to a quarter of a step. For
# the environment of a process that trains, since glibc reads it at the start.
KEEP_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def option(default: object, text: str) -> Any:
    """Returns a dataclass field with its help text for the command line; None stands for "follows from `data`"."""
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Settings of a run. Sizes left open follow from `data`: a demo of minutes, or the benchmark."""

    data: str | None = option(None, "csv or csv.gz file, or Hub dataset id; absent: a synthetic series.")
    output: str = option("autoformer-out", "Folder for models, traces, plot and results.json.")
    horizon: int = option(96, "Steps to forecast.")
    context: int = option(96, "Steps the model sees.")
    label_length: int = option(48, "Last steps of the context that the decoder sees again.")
    d_model: int = option(None, "Width; default 128 with --data, 64 for the demo.")
    heads: int = option(8, "Attention heads.")
    ffn: int = option(None, "Width of the feed-forward blocks; default 4 times d_model.")
    encoder_layers: int = option(2, "Encoder layers.")
    decoder_layers: int = option(1, "Decoder layers.")
    moving_average: int = option(25, "Window of the trend, odd.")
    dropout: float = option(0.05, "Dropout.")
    mend_attention: bool = option(True, "Mend the two faults of transformers' Autoformer attention.")
    batch_size: int = option(32, "Windows per step.")
    epochs: int = option(None, "Epochs; default 2 with --data, 3 for the demo.")
    patience: int = option(0, "Stop after so many epochs without a better validation MSE, test the best; 0: never.")
    max_steps: int = option(-1, "Stop after so many optimizer steps; -1: no limit.")
    learning_rate: float = option(None, "Adam's; default 3e-5 with --data, 1e-3 for the demo.")
    seed: int = option(2021, "Seed of initialisation, dropout and batch order.")
    delay: int = option(None, "OIALR: dense steps before factorisation; default 650, demo 50.")
    update_interval: int = option(None, "OIALR: steps between basis updates; default 100, demo 15.")
    target_size: float = option(None, "OIALR: share of the dense values to end with; default 0.4, none with a cutoff.")
    sigma_cutoff: float = option(None, "OIALR: in place of a size, drop singular values below this share of the top.")
    layer_step: float = option(None, "OIALR: with a cutoff, share of layers added per update, last layers first; 0.1.")
    rank: float = option(1.0, "OIALR: share of the full rank that a layer gets when it is factorised.")
    bases: str = option("longer", "OIALR: frozen (the paper's way), or longer: the longer side's trains along.")
    freeze_bases: int = option(None, "OIALR: step from which on sigma alone trains, with longer; default never.")
    keep_first_layer: bool = option(False, "OIALR: leave the first layer dense.")
    moments: str = option("rotate", "OIALR: optimizer moments at an update: rotate, slice or reset.")

    def __post_init__(self) -> None:
        real = self.data is not None
        chosen = {
            "d_model": 128 if real else 64,
            "epochs": 2 if real else 3,
            "learning_rate": 3e-5 if real else 1e-3,
            "delay": 650 if real else 50,
            "update_interval": 100 if real else 15,
            "target_size": 0.4 if self.sigma_cutoff is None else None,
        }
        for name, value in chosen.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.ffn is None:
            self.ffn = 4 * self.d_model


def earlier_results(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """What an earlier run with these settings left in a folder, None where there is nothing.

    Raises:
        ValueError: the folder has the results of other settings.
    """
    file = folder / "results.json"
    if not file.exists():
        return None
    results, now = json.loads(file.read_text()), asdict(settings)
    then = results["settings"]  # of an earlier version it may lack some
    if unlike := [name for name in now if name != "output" and then.get(name, now[name]) != now[name]]:
        name = unlike[0]
        raise ValueError(
            f"output: '{folder}' has the results of other settings ({name}: {then[name]!r} there, {now[name]!r} now); "
            "give another folder, or remove it."
        )
    return results
