"""The verdict on a run of PEFT's suite, and the list it is compared with."""

import pytest

from tests.peft_suite.plugin import CASES
from tests.peft_suite.run import judge, known_failures, main


def results(failed: int = 1, passed: int = 99) -> dict[str, dict[str, str]]:
    outcomes = ["failed"] * failed + ["passed"] * passed
    return {f"test {i}": {"model": "MLP", "outcome": o, "reason": "why"} for i, o in enumerate(outcomes)}


def test_only_the_listed_failures_are_accepted(capsys):
    assert judge(results(), {"test 0": "a limit"}, {}) == 0
    assert judge(results(), {}, {}) == 1
    assert "not in known_failures.toml: test 0\n    why" in capsys.readouterr().out
    assert judge(results(), {"test 0": "a limit", "test 7": "a limit"}, {}) == 1
    assert "listed in known_failures.toml, but passed: test 7" in capsys.readouterr().out
    assert judge(results(), {"test 0": "a limit", "gone": "a limit"}, {}) == 1
    assert "listed in known_failures.toml, but not run: gone" in capsys.readouterr().out


def test_the_edge_of_rounding_may_go_either_way_but_must_be_run(capsys):
    assert judge(results(), {}, {"test 0": "rounding", "test 7": "rounding"}) == 0
    assert judge(results(), {"test 0": "a limit"}, {"gone": "rounding"}) == 1
    assert "listed in known_failures.toml, but not run: gone" in capsys.readouterr().out


def test_a_list_may_not_excuse_more_than_three_in_a_hundred():
    assert judge(results(failed=3, passed=97), {f"test {i}": "" for i in range(3)}, {}) == 0
    assert judge(results(failed=4, passed=96), {f"test {i}": "" for i in range(4)}, {}) == 1


@pytest.mark.parametrize("suite", ["custom", "registration"])
@pytest.mark.parametrize("mode", ["whole", "residual"])
def test_every_known_failure_names_a_case_and_a_reason(mode, suite):
    names = {name for name, _, _ in CASES} | {"Same", "Different"} if suite == "custom" else {"OIALR"}
    certain, at_the_edge = known_failures(mode, suite)
    assert not certain.keys() & at_the_edge.keys()
    for test, reason in {**certain, **at_the_edge}.items():
        assert reason
        assert test.partition("[")[2].split("-")[0] in names


def test_a_missing_release_is_no_success(monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert main() == 2
    assert capsys.readouterr().out.startswith("not run: ")
    monkeypatch.setattr("sys.argv", ["run.py", "--allow-missing"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["run.py", "--archive", "absent.tar.gz"])
    with pytest.raises(SystemExit, match="2"):
        main()
