"""Run tests of PEFT's own source release over OIALRConfig, and compare with `known_failures.toml`.

By default those of custom models; with `--registration` the others that PEFT asks of a new method: configurations,
decoders and encoder-decoders, over tiny models that are made here under the names that the tests load from the Hub.

The release of the installed PEFT version is downloaded with pip, or given by `--archive`; it is unpacked in a
temporary folder and nothing of it is kept. Exit code 0: at least 97 % of the tests that ran passed and the failures
are those listed, where tests at the edge of rounding may go either way. 1: they are not. 2: the suite could not be run
(0 with `--allow-missing` where pip finds no release).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  (pytest brings it)

HERE = Path(__file__).parent
LEAST_SHARE = 0.97
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.10.12 and 3.11.4
# So that as few tests as possible change sides from one processor to the next: one thread, the CPU, and the oldest
# instructions of each library.
SAME_SUMS = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
SUITES = {
    "custom": ("test_custom_models.py",),
    "registration": ("test_config.py", "test_decoder_models.py", "test_encoder_decoder_models.py"),
}
Results = dict[str, dict[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="PEFT's source release (.tar.gz); default: download it")
    parser.add_argument("--registration", action="store_true", help="configurations, decoders, encoder-decoders")
    parser.add_argument("--residual", action="store_true", help="over OIALRConfig(residual=True)")
    parser.add_argument("--allow-missing", action="store_true", help="exit code 0 where it cannot be downloaded")
    parser.add_argument("pytest_args", nargs="*", help="more arguments for pytest, after --")
    args = parser.parse_args()
    if args.archive and not args.archive.is_file():
        parser.error(f"--archive must be a file; there is none at {args.archive}")
    with tempfile.TemporaryDirectory() as folder:
        archive = args.archive or download(Path(folder))
        if archive is None:
            print(f"not run: pip could not download the source release of peft {version('peft')}; see --archive")
            return 0 if args.allow_missing else 2
        mode = ["--residual"] if args.residual else []
        suite = "registration" if args.registration else "custom"
        results = run(unpack(archive, Path(folder)), SUITES[suite], [*mode, *args.pytest_args])
    if not results:
        print("not run: pytest ended without results; its output is above")
        return 2
    print_counts(results)
    certain, at_the_edge = known_failures("residual" if args.residual else "whole", suite)
    return judge(results, certain, at_the_edge)


def download(folder: Path) -> Path | None:
    """The source release of the installed PEFT, or None where pip does not get it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
    subprocess.run([*command, "--dest", str(folder), f"peft=={version('peft')}"])
    return next(folder.glob("peft-*.tar.gz"), None)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests; returns the folder that holds `tests`."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        tar.extractall(folder, members, **SAFELY)
    if not members:
        sys.exit(f"not run: {archive.name} holds no tests; give PEFT's source release (.tar.gz)")
    root = folder / members[0].name.split("/")[0]
    (root / "tests" / "__init__.py").touch()  # the release leaves it out, and the tests import relatively
    return root


def run(root: Path, files: tuple[str, ...], pytest_args: list[str]) -> Results:
    """The outcome of every test of some files, by its id without the file."""
    if files != SUITES["custom"]:
        subprocess.run([sys.executable, str(HERE / "models.py"), str(root)], check=True)
    path = root / "results.json"
    options = [
        "-c",
        os.devnull,
        "--rootdir",
        str(root),
        "-p",
        "no:cacheprovider",
        "-p",
        "plugin",
        "--results",
        str(path),
    ]
    quiet = ["-q", "--no-header", "--no-summary", "--disable-warnings", *(f"tests/{file}" for file in files)]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, *quiet, *pytest_args],
        cwd=root,
        env={**os.environ, **SAME_SUMS, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(path.read_text()) if path.exists() else {}


def print_counts(results: Results) -> None:
    """Passed, failed and skipped per model and overall, and PEFT's reasons for skipping."""
    counts = Counter((test["model"], test["outcome"]) for test in results.values())
    totals = Counter(test["outcome"] for test in results.values())
    print(f"\n{'model':30}{'passed':>8}{'failed':>8}{'skipped by PEFT':>17}")
    for model in dict.fromkeys(test["model"] for test in results.values()):
        print(f"{model:30}{counts[model, 'passed']:8}{counts[model, 'failed']:8}{counts[model, 'skipped']:17}")
    print(f"{'all':30}{totals['passed']:8}{totals['failed']:8}{totals['skipped']:17}\n")
    for reason, count in Counter(t["reason"] for t in results.values() if t["outcome"] == "skipped").items():
        print(f"{count} {reason}")


def known_failures(mode: str = "whole", suite: str = "custom") -> tuple[dict[str, str], dict[str, str]]:
    """{test id: reason} of the tests that fail everywhere, and of those that may fail."""
    groups = tomllib.loads((HERE / "known_failures.toml").read_text())["failures"]
    certain, at_the_edge = {}, {}
    for group in groups:
        if (group.get("mode", mode), group.get("suite", "custom")) != (mode, suite):
            continue
        known = at_the_edge if group.get("at_the_edge_of_rounding") else certain
        known.update(dict.fromkeys(group["tests"], group["reason"]))
    return certain, at_the_edge


def judge(results: Results, certain: dict[str, str], at_the_edge: dict[str, str]) -> int:
    """The exit code; prints what differs from the list."""
    failed = {name: test["reason"] for name, test in results.items() if test["outcome"] == "failed"}
    passed = sum(test["outcome"] == "passed" for test in results.values())
    share = passed / max(passed + len(failed), 1)
    print(f"{share:.1%} of {passed + len(failed)} tests that ran passed with peft {version('peft')}.")
    unlisted = failed.keys() - certain.keys() - at_the_edge.keys()
    outdated = (certain.keys() - failed.keys()) | (at_the_edge.keys() - results.keys())
    for name in sorted(unlisted):
        print(f"not in known_failures.toml: {name}\n    {failed[name].splitlines()[0] if failed[name] else ''}")
    for name in sorted(outdated):
        print(f"listed in known_failures.toml, but {results.get(name, {'outcome': 'not run'})['outcome']}: {name}")
    return int(bool(unlisted or outdated) or share < LEAST_SHARE)


if __name__ == "__main__":
    sys.exit(main())
