"""Who may import whom. The tables come first: they are the map of the package.

A package with modules of its own (`cli`) counts as one. What is imported inside a function is loaded on first use, what
stands under `TYPE_CHECKING` is for type checkers alone; both have their own table.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "together_async"

AT_IMPORT = {
    # values
    "_version": set(),
    "secret": set(),
    "models": set(),
    "request": {"models"},
    "errors": {"models"},
    "timeouts": {"errors"},
    # bytes to values and back
    "codec": {"errors", "models"},
    "sse": set(),
    "protocol": {"codec", "errors", "models", "request", "sse"},
    "passing": {"protocol", "sse"},
    "accumulator": {"models"},
    "coalesce": {"accumulator", "codec", "models"},
    "chunk_log": {"codec", "coalesce", "models"},
    # policy
    "retry": {"errors", "models"},
    "ratelimit": {"errors", "timeouts"},
    # I/O
    "deadlines": set(),
    "exchange": {"errors", "protocol", "timeouts"},
    "transport": {"_version", "deadlines", "errors", "exchange", "protocol", "secret", "timeouts"},
    "call": {"errors", "models", "protocol", "ratelimit", "retry", "timeouts"},
    "readers": {"codec", "errors", "models", "passing"},
    "stream": {"accumulator", "codec", "errors", "models", "passing", "protocol", "readers"},
    # between one stream and those who read it
    "buffer": {"coalesce", "models"},
    "source": {"accumulator", "buffer", "errors", "group", "models", "readers", "stream"},
    "broadcast": {"buffer", "chunk_log", "errors", "group", "models", "source"},
    "pricing": set(),
    "journal": {"codec", "errors", "models"},
    "batch_input": {"codec"},
    "results_file": {"journal"},
    "budget": {"pricing"},
    "outage": set(),
    "batch_plan": {"batch_input", "fanout", "journal", "ratelimit", "request"},
    "batch_values": {"journal", "ratelimit", "retry", "timeouts"},
    "report": {"journal"},
    "batch": {
        "batch_input",
        "batch_plan",
        "batch_values",
        "budget",
        "errors",
        "fanout",
        "journal",
        "outage",
        "ratelimit",
        "results_file",
        "retry",
        "timeouts",
    },
    "structured": {"codec", "errors", "models"},
    "compat": {"models", "request"},
    "group": set(),
    "fanin": {"errors", "group"},
    "fanout": {"errors", "group", "models", "request"},
    "client": {
        "call",
        "compat",
        "errors",
        "fanout",
        "models",
        "pricing",
        "protocol",
        "ratelimit",
        "request",
        "retry",
        "secret",
        "sse",
        "stream",
        "structured",
        "timeouts",
    },
    "__init__": {
        "_version",
        "client",
        "errors",
        "fanin",
        "fanout",
        "models",
        "ratelimit",
        "request",
        "retry",
        "stream",
        "structured",
        "timeouts",
    },
    # doors
    "relay": {"broadcast", "buffer", "codec", "errors", "group", "models", "protocol", "source", "sse", "stream"},
    "examples": {"__init__", "relay"},
    "_local_process": set(),
    "local": {"_local_process", "errors"},
    "testing": {"codec", "request", "sse"},
    "pytest_plugin": set(),
    "cli": {
        "__init__",
        "_version",
        "batch",
        "batch_plan",
        "batch_values",
        "client",
        "errors",
        "local",
        "models",
        "pricing",
        "ratelimit",
        "results_file",
        "stream",
        "testing",
    },
    "__main__": {"cli"},
}
ON_FIRST_USE = {
    "client": {"batch", "transport"},
    "batch": {"report"},
    "cli": {"local", "testing", "transport"},
    "pytest_plugin": {"__init__", "client", "testing"},
}
FOR_TYPES = {
    "__init__": {"broadcast", "buffer", "source"},
    "compat": {"client", "stream"},
    "call": {"exchange", "protocol", "ratelimit", "request", "transport"},
    "fanout": {"call", "stream"},
    "readers": {"stream"},
    "stream": {"call", "exchange"},
    "batch": {"client", "report"},
    "client": {"batch_values", "exchange", "journal", "transport"},
    "pytest_plugin": {"__init__", "testing"},
}

PURE = (
    "models",
    "request",
    "errors",
    "codec",
    "sse",
    "protocol",
    "passing",
    "accumulator",
    "coalesce",
    "chunk_log",
    "timeouts",
    "retry",
    "secret",
    "pricing",
    "journal",
    "batch_input",
    "budget",
    "outage",
)
"""No I/O, no clock, no chance: the same input gives the same output. Time is an argument."""
IMPURE = {
    "aiohttp",
    "asyncio",
    "datetime",
    "os",
    "random",
    "secrets",
    "select",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
CLOCKS = {"protocol": {"time"}}
"""`protocol` names `time.time` once, as the default of an argument."""

HEAVY = ("aiohttp", "cattrs", "click", "rich", "pydantic", "redis", "opentelemetry", "yarl", "multidict")
"""What `import together_async` does not load: it is needed on the first request, or for one door, or never."""


def units() -> dict[str, list[Path]]:
    """The package's modules, and its packages as one each."""
    found: dict[str, list[Path]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        found.setdefault(place.parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(tree: ast.AST, kind: str = "import") -> Iterator[tuple[str, str]]:
    """Every imported name of a module, with when: `import`, `use` (inside a function) or `types`."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from ((kind, alias.name) for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, "relative imports would not be seen here"
                # `from package import name`: the name may be a module of it.
                yield from ((kind, f"{node.module}.{alias.name}") for alias in node.names)
            case ast.Call(func=ast.Name("import_module"), args=[ast.Constant(str(name)), *_]):
                yield kind, name
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                yield from (pair for child in node.body for pair in imports_of_statement(child, "types"))
                yield from (pair for child in node.orelse for pair in imports_of_statement(child, kind))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from imports(node, "use" if kind == "import" else kind)
            case _:
                yield from imports(node, kind)


def imports_of_statement(statement: ast.stmt, kind: str) -> Iterator[tuple[str, str]]:
    return imports(ast.Module([statement], []), kind)


def own(name: str) -> str | None:
    """The unit an imported name belongs to, None when it is not ours."""
    package, *rest = name.split(".")
    if package != ROOT.name:
        return None
    if rest and ((ROOT / f"{rest[0]}.py").exists() or (ROOT / rest[0]).is_dir()):
        return rest[0]
    return "__init__"


def found(kind: str) -> dict[str, set[str]]:
    """For each unit the units it imports."""
    result = {}
    for unit, paths in units().items():
        names = {own(name) for path in paths for when, name in imports(ast.parse(path.read_text())) if when == kind}
        result[unit] = names - {None, unit}
    return result


def test_every_module_stands_in_the_table():
    """A new module begins with its line in the table."""
    assert set(units()) <= set(AT_IMPORT)


@pytest.mark.parametrize(("kind", "table"), [("import", AT_IMPORT), ("use", ON_FIRST_USE), ("types", FOR_TYPES)])
def test_imports_are_within_the_table(kind, table):
    """No module imports one of ours that its line does not name: at import, on first use, or for type checkers."""
    beyond = {unit: names - table.get(unit, set()) for unit, names in found(kind).items()}
    assert {unit: names for unit, names in beyond.items() if names} == {}


def test_no_cycles():
    """At run time, first use included, the arrows point one way."""
    table = {unit: AT_IMPORT[unit] | ON_FIRST_USE.get(unit, set()) for unit in AT_IMPORT}
    done: list[str] = []
    while len(done) < len(table):
        ready = [unit for unit, needs in table.items() if unit not in done and needs <= set(done)]
        assert ready, f"a cycle among {sorted(set(table) - set(done))}"
        done += ready


PURE_BUT = {"ratelimit": {"limiter"}, "report": set()}
"""Packages that are pure but for these modules, and `__init__`, which names what is public."""
TYPES_ALONE = {"datetime"}
"""Modules of types and arithmetic, beside a clock that is not asked."""


@pytest.mark.parametrize("package", PURE_BUT)
def test_pure_packages_are_pure(package):
    """What decides takes the time as an argument; one module drives it with the event loop."""
    others = [path for path in units()[package] if path.stem not in {*PURE_BUT[package], "__init__"}]
    assert len(others) > 1
    for path in others:
        tree = ast.parse(path.read_text())
        used = {name.split(".")[0] for kind, name in imports(tree) if kind != "types"}
        assert used & IMPURE <= TYPES_ALONE, path.name
        assert not any(isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow"} for node in ast.walk(tree))


@pytest.mark.parametrize("unit", PURE)
def test_pure_modules_are_pure(unit):
    """No event loop, socket, clock or chance, at import or later, themselves or by a module they import."""
    reached, waiting = set(), {unit}
    while waiting:
        reached |= waiting
        waiting = set().union(*(AT_IMPORT[name] for name in waiting)) - reached
    assert reached <= set(PURE)
    (path,) = units()[unit]
    used = {name.split(".")[0] for kind, name in imports(ast.parse(path.read_text())) if kind != "types"}
    assert used & IMPURE == CLOCKS.get(unit, set())


def test_the_clock_is_only_a_default():
    """`protocol` never asks the time itself: `time.time` stands once, where a caller may pass another clock."""
    tree = ast.parse((ROOT / "protocol.py").read_text())
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "time"]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    defaults = [default for one in functions for default in (*one.args.defaults, *one.args.kw_defaults)]
    assert [ast.unparse(default) for default in defaults if default and "time" in ast.unparse(default)] == ["time.time"]
    assert len(uses) == 1


@pytest.mark.parametrize("module", ["together_async", *(f"together_async.{unit}" for unit in PURE)])
def test_import_loads_nothing_heavy(module):
    """A fresh process that imports the package has none of the heavy or optional libraries."""
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT.parent)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_every_public_name_is_there():
    """`__all__` is sorted, without doubles, and every name in it exists."""
    import together_async

    assert together_async.__all__ == sorted(set(together_async.__all__))
    assert all(hasattr(together_async, name) for name in together_async.__all__)


@pytest.mark.parametrize("name", ["relay.EventSourceResponse", "testing.EmulatorServer", "buffered", "Broadcast"])
def test_what_only_some_need_is_there_when_it_is_asked_for(name):
    """By the package's name alone, in a fresh process; asking for what is not there is an AttributeError."""
    code = f"import together_async; together_async.{name}; print(hasattr(together_async, 'relays'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["False"], "")
