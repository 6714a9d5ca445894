"""The dense twin and OIALR runs that share its full-rank phase, for a third less time than separate runs.

    python branch.py --data ETTm2.csv.gz --trunk trunk/0 --output dense-0
    python branch.py --data ETTm2.csv.gz --trunk trunk/0 --output slice-0 --moments slice

Until step `delay` an OIALR run is the dense run bit for bit, and a resumed run is the uninterrupted one (both tested).
So the trunk trains densely to the end and leaves a checkpoint one step before `delay`; each branch resumes there.
The trunk is an OIALR model that is never factorised; its record is that of the dense twin.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from baselines import baseline_errors
from report import write_json
from run import prepare
from settings import Settings, option
from train import make_record, make_trainer
from transformers import HfArgumentParser
from windows import Splits


NEVER = 10**9


@dataclass
class Branch:
    """Where the shared phase lies."""

    trunk: str = option("autoformer-trunk", "Folder of the dense run; trained first where it has no results.json.")
    trunk_only: bool = option(False, "Train the dense run only.")


def train_trunk(settings: Settings, splits: Splits, folder: Path) -> dict[str, Any]:
    """Trains the dense twin with a checkpoint one step before `settings.delay`; returns its record."""
    dense = replace(settings, delay=NEVER, output=str(folder))
    trainer, clock = make_trainer("oialr", dense, splits, folder)
    trainer.args.save_strategy = cast(Any, "steps")
    trainer.args.save_steps = settings.delay - 1
    trainer.train()
    return make_record("dense", settings, splits, folder, trainer, clock)


def train_branch(settings: Settings, splits: Splits, checkpoint: Path) -> dict[str, Any]:
    """Trains OIALR from the trunk's checkpoint on; returns its record, with the time of the steps it made itself."""
    folder = Path(settings.output)
    trainer, clock = make_trainer("oialr", settings, splits, folder)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return make_record("oialr", settings, splits, folder, trainer, clock)


def write_record(folder: Path, settings: Settings, splits: Splits, record: dict[str, Any]) -> None:
    """Writes results.json of one run, as run.py does."""
    errors = baseline_errors(splits.test)
    write_json(folder / "results.json", {"settings": asdict(settings), "trivial predictors": errors, "runs": [record]})


def main() -> None:
    """Reads the command line, trains the trunk where it is missing, then the branch."""
    settings, branch = HfArgumentParser(cast(Any, (Settings, Branch))).parse_args_into_dataclasses()
    splits, trunk = prepare(settings), Path(branch.trunk)
    if not (trunk / "results.json").exists():
        write_record(trunk, settings, splits, train_trunk(settings, splits, trunk))
    if not branch.trunk_only:
        record = train_branch(settings, splits, trunk / f"checkpoint-{settings.delay - 1}")
        write_record(Path(settings.output), settings, splits, record)


if __name__ == "__main__":
    main()
