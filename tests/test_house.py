"""The rules of the house: private names of other libraries, import cycles, the size of files and functions."""

import ast
from pathlib import Path

import pytest

import oialr_peft


PACKAGE = Path(oialr_peft.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
# Methods that PEFT, transformers and torch ask a subclass to define, or that one calls as its subclass.
HOOKS = {"tuner/model.py", "layer.py", "export/quantizer.py"}
PUBLIC = {"_replace", "_asdict", "_fields"}  # of NamedTuple, which must keep names free for fields


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a file defines."""
    names = set(PUBLIC)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return names


def foreign_private_names(tree: ast.Module) -> set[str]:
    """Private names of other files and libraries that a file uses, also by `getattr` and the like."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update((node.module or "").split("."))
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            found.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    return {name for name in found if isinstance(name, str) and is_private(name)} - own_names(tree)


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith("compat/") and f not in HOOKS])
def test_private_names_of_other_libraries_stay_in_compat(file):
    assert foreign_private_names(FILES[file]) == set()


def test_the_ban_sees_what_it_should():
    source = "from a._b import c\nx._private\ngetattr(x, '_named')\nself._own = 1\nx._own\nx._replace(a=1)"
    assert foreign_private_names(ast.parse(source)) == {"_b", "_private", "_named"}


@pytest.mark.parametrize("file", [f for f in FILES if f != "errors.py"])
def test_every_warning_is_told_at_the_line_of_its_user(file):
    used = [node.attr for node in ast.walk(FILES[file]) if isinstance(node, ast.Attribute)]
    assert not {"warn", "warn_explicit"} & {*used}, "use errors.tell"


def imports_of(tree: ast.Module, package: tuple[str, ...]) -> set[str]:
    """The files of the package that a file imports when it is imported, as paths."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            for target in (base, *((*base, alias.name) for alias in node.names)):
                path = "/".join(part for part in target if part)
                found |= {f for f in (f"{path}.py", f"{path}/__init__.py") if f in FILES}
    return found


def test_no_file_imports_itself_by_way_of_others():
    graph = {file: imports_of(tree, tuple(file.split("/")[:-1])) for file, tree in FILES.items()}
    while leaves := {file for file, targets in graph.items() if not targets}:
        graph = {file: targets - leaves for file, targets in graph.items() if file not in leaves}
    assert not graph


def lengths_of_functions() -> list[int]:
    return sorted(
        node.end_lineno - node.lineno + 1
        for tree in FILES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )


def test_a_file_fits_a_reader_and_a_function_a_screen():
    too_long = {f: n for f in FILES if (n := len((PACKAGE / f).read_text().splitlines())) > 250}
    assert not too_long
    lengths = lengths_of_functions()
    assert lengths[int(0.9 * len(lengths))] <= 25
