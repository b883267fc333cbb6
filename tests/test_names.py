"""One word for one thing, short functions, documented values: what keeps the code readable, as tests.

All but the fields of public values is read from the syntax trees of the sources.
"""

import ast
import functools
import importlib
import inspect
import io
import re
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from support.paths import PACKAGE, ROOT

OLD_WORDS = {"one", "told", "heard", "hears"}
"""Words that once stood for many things; the exact noun or verb is in their place."""

MOST_LINES = 60
"""Of a function, without its docstring."""
MEDIAN_LINES = 6
NINETIETH_PERCENTILE_LINES = 20
MOST_LINES_OF_A_MODULE = 600

MOST_MEMBERS = 20
"""Methods of a class, and attributes. A class with more belongs into `LARGE_CLASSES`."""
LARGE_CLASSES = {
    "Admission",
    "Broadcast",
    "Bucket",
    "Call",
    "ChatCompletionRequest",
    "ChatCompletionStream",
    "HTTPResponse",
    "Lane",
    "Reading",
    "RequestOptions",
}
"""Classes that are one thing in spite of their size: the docstring of each says why."""

PUBLIC_PACKAGES = [f"{PACKAGE.name}{part}" for part in ("", ".relay", ".testing", ".batch", ".local")]
"""Packages whose exported values must document their fields."""

SUPPRESSION = re.compile(r"#\s*(?:ruff:\s*)?(?:noqa|type:\s*ignore|pyright:\s*ignore)")
REASONED = re.compile(
    r"(?:noqa: [A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*|type: ignore\[[a-z, -]+\]|pyright: ignore\[[A-Za-z, ]+\])"
    r" +(?:-|#) \S*\w"
)
"""`# noqa: PLC0415 - only --local needs it`: the code, then the reason."""

TESTED_ELSEWHERE = {
    "cli/app": "cli/serve/test_command.py",
    "cli/chat/options": "cli/chat/test_command.py",
    "cli/serve/options": "cli/serve/test_command.py",
    "cli/target": "cli/test_local_model.py",
    "cli/terminal": "cli/chat/test_session.py",
}
"""Modules without a test file of their name, and the file that covers them."""
NO_MODULE = {"test_layers.py", "test_names.py"}
"""Tests of the package as a whole, at the top. Other tests of several modules stand in `tests/system`."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def trees(folder: Path = PACKAGE) -> dict[str, ast.Module]:
    """The syntax tree of every module below a folder, by its path from the repository's top."""
    paths = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these kinds in the package, with the path of its module."""
    for path, tree in trees().items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, kinds))


def test_no_two_classes_share_a_name():
    """Apart from leading underscores, the command's own classes and the examples."""
    places = defaultdict(list)
    for path, node in nodes(ast.ClassDef):
        if not path.startswith(("together_async/cli/", "together_async/examples/")):
            places[node.name.lstrip("_")].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def identifiers(node: ast.AST) -> list[str]:
    """The names that a node introduces or uses."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.keyword(arg=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.ExceptHandler(name=str(name)):
            return [name]
    return []


@pytest.mark.parametrize("folder", ["together_async", "tests/system", "tests/support"])
def test_no_old_words(folder):
    """A variable is named by its noun, a change of state by its verb."""
    found = [
        f"{path}:{node.lineno} {name}"  # type: ignore[attr-defined] # all nodes with a name have a line
        for path, tree in trees(ROOT / folder).items()
        for node in ast.walk(tree)
        for name in identifiers(node)
        if name.strip("_") in OLD_WORDS
    ]
    assert found == []


def lines_of(function: Function) -> int:
    """How many lines a function has without its decorators and docstring."""
    lines = function.end_lineno - function.lineno + 1  # type: ignore[operator] # the parser sets it
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1  # type: ignore[operator] # the parser sets it
    return lines


def test_functions_are_short():
    lengths = {f"{path}:{node.lineno} {node.name}": lines_of(node) for path, node in nodes(*Function.__args__)}
    assert statistics.median(lengths.values()) <= MEDIAN_LINES
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= NINETIETH_PERCENTILE_LINES
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_modules_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES_OF_A_MODULE} == {}


def methods(class_: ast.ClassDef) -> set[str]:
    return {node.name for node in class_.body if isinstance(node, Function)}


def attributes(class_: ast.ClassDef) -> set[str]:
    """What is annotated in the body, stands in `__slots__`, or is assigned on `self` in a method."""
    found = set()
    for node in class_.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if "ClassVar" not in ast.unparse(annotation):
                    found.add(name)
            case ast.Assign(targets=[ast.Name("__slots__")], value=value):
                found |= {item.value for item in ast.walk(value) if isinstance(item, ast.Constant)}
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found |= {
                    target.attr
                    for target in ast.walk(node)
                    if isinstance(target, ast.Attribute)
                    and isinstance(target.ctx, ast.Store)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                }
    return found


def test_large_classes_are_listed():
    """A class that grows beyond the bound is split, or says in its docstring why it is one thing and is listed."""
    large = {
        node.name
        for _, node in nodes(ast.ClassDef)
        if len(methods(node)) > MOST_MEMBERS or len(attributes(node)) > MOST_MEMBERS
    }
    assert large == LARGE_CLASSES


def suppressions(path: Path) -> Iterator[tuple[int, str]]:
    """The comments that silence a tool, with their lines."""
    text = path.read_text()
    if SUPPRESSION.search(text):  # most files have none, and tokens are slow
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and SUPPRESSION.search(token.string):
                yield token.start[0], token.string


@pytest.mark.parametrize("folder", ["together_async", "tests", "benchmarks"])
def test_suppressions_have_a_reason(folder):
    """Whoever silences a tool says which rule, and why."""
    found = [
        f"{path.relative_to(ROOT)}:{line} {comment}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, comment in suppressions(path)
        if not REASONED.search(comment)
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["together_async", "tests", "benchmarks"])
def test_unformatted_blocks_have_a_reason(folder):
    """`fmt: off` takes no text after it, so its reason is the comment on the line above."""
    for path in (ROOT / folder).rglob("*.py"):
        lines = path.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if line.strip() == "# fmt: off":
                assert above.strip().startswith("# "), path


def public_definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions, classes and their methods whose names have no leading underscore."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *Function.__args__)) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{node.name}.")


def is_described(node: ast.AST) -> bool:
    """Whether a definition has a docstring, or is an overload or setter of one that has."""
    if ast.get_docstring(node) is not None:
        return True
    return any(ast.unparse(decorator).endswith(("overload", ".setter")) for decorator in node.decorator_list)


def test_every_public_callable_has_a_docstring():
    found = [
        f"{path}:{node.lineno} {name}"
        for path, tree in trees().items()
        for name, node in public_definitions(tree)
        if not path.startswith("together_async/examples/") and not is_described(node)
    ]
    assert found == []


@functools.cache
def definitions() -> dict[tuple[str, str], ast.ClassDef]:
    """Every class at the top of a module, by its module's dotted name and its own."""
    found = {}
    for path, tree in trees().items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        found.update({(module, node.name): node for node in tree.body if isinstance(node, ast.ClassDef)})
    return found


def exported_classes() -> dict[str, type]:
    """The classes that users import: values, exceptions and the rest."""
    found = {}
    for package in PUBLIC_PACKAGES:
        module = importlib.import_module(package)
        exported = {name: getattr(module, name) for name in module.__all__}
        found.update({name: class_ for name, class_ in exported.items() if inspect.isclass(class_)})
    return found


def own_bases(class_: type) -> list[type]:
    """The class and its bases that are of this package."""
    return [base for base in class_.__mro__ if base.__module__.startswith(PACKAGE.name)]


def public_fields(class_: type) -> set[str]:
    """What a user reads from a value or an exception, or passes to make it."""
    if attrs.has(class_):
        names = {field.alias if field.name.startswith("_") else field.name for field in attrs.fields(class_)}
    elif issubclass(class_, tuple):
        names = set(class_._fields)
    elif issubclass(class_, BaseException):
        own = [definitions()[base.__module__, base.__name__] for base in own_bases(class_)]
        names = set().union(*map(attributes, own))
    else:
        names = set()
    return {name for name in names if not name.startswith("_")}


def documented(class_: type) -> set[str]:
    """The names that stand before a colon in the sections `Args` and `Attributes` of the class and its bases."""
    texts = []
    for base in own_bases(class_):
        definition = definitions()[base.__module__, base.__name__]
        texts += [ast.get_docstring(node) for node in [definition, *definition.body] if has_docstring(node)]
    sections = re.findall(
        r"^(?:Args|Attributes):\n((?: +.*\n|\n)+)", "".join(f"{text}\n" for text in texts), re.MULTILINE
    )
    heads = re.findall(r"^    (\*{0,2}\w[\w, *]*)(?: \(.*?\))?:", "".join(sections), re.MULTILINE)
    return {name for head in heads for name in re.findall(r"\w+", head)}


def has_docstring(node: ast.AST) -> bool:
    """Whether it is a class, or the `__init__` of it, with a docstring."""
    if isinstance(node, ast.FunctionDef) and node.name != "__init__":
        return False
    return isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None


@pytest.mark.parametrize(("name", "class_"), exported_classes().items(), ids=exported_classes())
def test_the_fields_of_public_values_are_documented(name, class_):
    assert public_fields(class_) - documented(class_) == set()


def files_testing(module: Path) -> list[Path]:
    """The test files `test_<module>.py` and `test_<module>_<aspect>.py`, in the folder of the module's package."""
    folder = ROOT / "tests" / module.parent
    return [*folder.glob(f"test_{module.name}.py"), *folder.glob(f"test_{module.name}_*.py")]


def test_every_module_has_a_test_file_of_its_name():
    """Whoever changes a module finds its tests by its name."""
    modules = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    without = {str(module) for module in modules if not module.name.startswith("_") and not files_testing(module)}
    assert without == set(TESTED_ELSEWHERE)
    assert [file for file in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / file).is_file()] == []


def test_every_test_file_names_its_module():
    """A module of the package that the folder stands for, one of its packages, or the package itself."""
    folders = [folder for folder in (PACKAGE, *PACKAGE.rglob("*/")) if folder.name != "__pycache__"]
    strays = []
    for folder in folders:
        subjects = [folder.name, *(path.stem for path in folder.iterdir() if not path.name.startswith("_"))]
        names = re.compile(rf"test_({'|'.join(subjects)})(_\w+)?\.py")
        place = ROOT / "tests" / folder.relative_to(PACKAGE)
        strays += [str(path.relative_to(ROOT)) for path in place.glob("test_*.py") if not names.fullmatch(path.name)]
    assert set(strays) == {f"tests/{name}" for name in NO_MODULE}
