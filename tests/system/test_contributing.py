"""`.github/CONTRIBUTING.md` is true: the import rule, the paths, and the tests that comments name."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import PACKAGE, ROOT, TESTS

PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
QUICK_PATH = re.compile(
    r"# Quick path of .*?;\s*(?:#\s*)?(tests/\S+\.py)::(\w+)\s*(?:#\s*)?holds\s*(?:#\s*)?the\s*(?:#\s*)?two", re.DOTALL
)


def import_rule() -> list[list[str]]:
    """The packages of the rule, level by level, from left to right."""
    (line,) = re.findall(r"^models < .*$", PAGE, re.MULTILINE)
    return [[name.strip() for name in level.split(",")] for level in line.split("<")]


def rows() -> Iterator[tuple[str, set[str]]]:
    """Each package of the table in tests/test_layers.py with what it imports at run time."""
    spec = importlib.util.spec_from_file_location("layers", TESTS / "test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    for name, row in layers.written(layers.PACKAGES).items():
        yield name, row["import"] | row["use"]


def test_the_import_rule_is_that_of_the_tables() -> None:
    """A package of the rule imports only what stands to its left; the others of its level do not count as left."""
    levels = {name: level for level, names in enumerate(import_rule()) for name in names}
    assert len(levels) > 12
    imported = dict(rows())
    for name, level in levels.items():
        right = {other for other in imported[name] if levels.get(other, -1) >= level}
        assert not right, f"{name} imports {sorted(right)}, which the rule has not to its left"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"[\w.]+/[\w./]*\w\.(?:py|md)", PAGE))))
def test_paths_exist(path: str) -> None:
    """Files are named from the repository's root, those of the package also from its own."""
    if "<" not in path:
        assert (ROOT / path).exists() or (PACKAGE / path).exists()


def test_packages_are_those_that_exist() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == {name for name in re.findall(r"\b(\w+)/ ", PAGE) if name in packages}


def quick_paths() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        matches = QUICK_PATH.findall(text)
        assert len(matches) == text.count("Quick path of"), f"{path.name}: a comment of another form"
        found += [(str(path.relative_to(PACKAGE)), file, name) for file, name in matches]
    return found


@pytest.mark.parametrize(("where", "file", "name"), quick_paths())
def test_quick_paths_are_held_to_the_full_ones(where: str, file: str, name: str) -> None:
    """The comment above a quick path names a test that exists."""
    tree = ast.parse((ROOT / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in defined


def test_the_files_of_the_walk_exist() -> None:
    """What the page says to read first."""
    for path in re.findall(r"`((?:calls|http|wire)/\w+\.py)`", PAGE):
        assert Path(PACKAGE / path).exists()
