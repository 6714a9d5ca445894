"""The public names, and that each is documented."""

import inspect

import pytest

import oialr_peft
from oialr_peft import cards, linalg, policy
from oialr_peft.plan import numbers, speed, table
from oialr_peft.report import plots
from oialr_peft.training import trace


def test_names():
    assert set(oialr_peft.__all__) >= {"OIALRCallback", "OIALRConfig", "OIALRModel", "OIALRUpdater", "rank_report"}
    assert all(getattr(oialr_peft, name) for name in oialr_peft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        oialr_peft.nothing  # noqa: B018


@pytest.mark.parametrize("module", [oialr_peft, linalg, policy, cards, numbers, table, plots, speed, trace])
def test_public_functions_and_classes_are_documented(module):
    public = [getattr(module, name) for name in getattr(module, "__all__", vars(module)) if not name.startswith("_")]
    public = [item for item in public if inspect.isclass(item) or inspect.isfunction(item)]
    assert public
    for item in public:
        assert item.__doc__, item
        for name, method in vars(item).items() if inspect.isclass(item) else ():
            own = inspect.isfunction(method) and not name.startswith(("_", "on_"))
            assert not own or inspect.getdoc(getattr(item, name)), f"{item.__name__}.{name}"
