"""Who may import whom. The tables come first: they are the map of the package.

A row reads `name: imports | imports on first use, inside a function | names for type checkers alone`. `PACKAGES` has
the rooms of the top level, each package as one. Its rows stand in the order of the import rule: a row names only what
stands above it (for types it may look down). `MODULES` has the modules inside each package, and names only their
siblings. Both are exact: an import that is in no row fails, and so does a row without its import.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import PACKAGE, ROOT

PACKAGES = """
    _version:
    validation:
    models:
    errors:         models
    request:        validation models
    timeouts:       validation errors
    retry:          validation models errors
    tasks:
    pricing:
    wire:           models errors request
    http:           _version errors timeouts tasks wire
    ratelimit:      validation errors timeouts tasks wire
    calls:          models errors timeouts retry tasks wire http ratelimit | | request wire http ratelimit
    flow:           models errors tasks wire calls
    fanout:         models errors request timeouts tasks calls | | models request calls
    batch:          models errors request timeouts retry pricing wire ratelimit fanout | | client
    relay:          models errors tasks wire calls flow
    compat:         models errors request calls | | calls client
    client:         models errors request timeouts retry wire http ratelimit calls fanout compat | pricing wire http
                    batch | pricing wire http batch
    __init__:       _version models errors request timeouts retry wire ratelimit calls fanout client | |
                    pricing wire flow fanout batch
    local:          errors
    testing:        request wire
    examples:       relay __init__
    pytest_plugin:  | __init__ testing | __init__ testing
    cli:            _version errors pricing http ratelimit batch __init__ local testing | http local
    __main__:       cli
"""
MODULES = {
    "batch": """
        __init__:  | | options output plan progress record runner
        budget:
        input:
        outage:
        record:
        options:   record
        plan:      input record
        progress:  record
        report:    record
        rounds:    budget input outage plan record
        standing:  record
        output:    record standing
        writer:    output record
        runner:    budget options output plan progress record rounds writer | report | report
    """,
    "batch.report": """
        formats:
        style:
        timeline:
        statistics:   timeline
        charts:       formats statistics
        time_charts:  charts formats timeline
        page:         charts formats statistics style time_charts timeline
        __init__:     page timeline
    """,
    "calls": """
        __init__:
        call:
        stats:
        tracebacks:
        claims:
        reading:   claims stats tracebacks | | call
        readers:   claims reading
        stream:    readers reading stats tracebacks | | call
        whole:     | | call
    """,
    "cli": """
        local_model:
        request_options:
        target:
        terminal:
        app:              terminal
        __init__:         | app
        batch:            request_options target terminal | local_model
        chat:             target terminal | local_model
        serve:            terminal
    """,
    "cli.batch": """
        __init__:
        figures:
        options:
        panel:        figures
        plan_report:  figures options
        progress:     figures | panel
        run:          options plan_report progress
        command:      options | run
    """,
    "cli.chat": """
        __init__:
        options:
        session:       options
        conversation:  options session
        command:       options | conversation
    """,
    "cli.serve": """
        __init__:
        fault_spec:
        options:
        banner:        options
        request_line:
        printer:       options request_line
        script_file:
        servers:       fault_spec options printer request_line script_file
        run:           banner options printer servers
        command:       options | fault_spec run
    """,
    "examples": """
        __init__:
        aiohttp_app:
        fastapi_app:
        resume_app:
        starlette_app:
    """,
    "fanout": """
        __init__:
        defaults:
        group:
        merge:     group
        results:   group | | map
        pending:   results
        map:       group pending results | | defaults
    """,
    "flow": """
        __init__:
        buffer:
        chunk_log:
        loops:      buffer
        source:     loops
        buffered:   buffer loops source
        broadcast:  buffer buffered chunk_log loops source
    """,
    "http": """
        __init__:
        deadlines:
        errors:
        headers:
        proxies:
        sockets:
        connector:    sockets
        response:     deadlines errors sockets
        transport:    connector deadlines errors headers proxies response sockets
        connections:  | headers transport | transport
    """,
    "local": """
        process:
        server:    process
        __init__:  server
    """,
    "ratelimit": """
        backoff:
        congestion:
        descriptors:
        estimator:
        headers:
        limits:
        silent_refusals:
        start:
        queue:            estimator limits | | lane
        found_rate:       headers
        rate_control:     found_rate headers
        bucket:           headers rate_control
        lane:             backoff bucket congestion estimator headers limits queue silent_refusals start
        schedule:      lane limits
        turned_away:   lane
        admission:     descriptors estimator headers lane limits queue schedule turned_away
        deadlock:      | | admission queue
        driver:        admission deadlock estimator headers lane limits queue
        limiter:       driver limits queue
        __init__:      limiter limits
    """,
    "relay": """
        browser_errors:
        events:
        hub:             browser_errors
        lifespan:
        passthrough:
        feed:            events passthrough
        shutdown:
        session:         browser_errors events feed shutdown
        iterator:        browser_errors events feed session shutdown
        respond:         browser_errors feed session
        aiohttp:         browser_errors events feed respond session shutdown
        asgi:            browser_errors events feed respond session shutdown
        __init__:        aiohttp asgi browser_errors events hub iterator lifespan passthrough session shutdown
                         | | asgi
    """,
    "testing": """
        exchange:
        incoming:
        journal:
        privacy:     exchange
        recorder:    exchange privacy
        response:
        fault:       response
        recording:   exchange response
        text:
        script:      text
        dialect:     script text
        answers:     dialect response
        validators:
        faults:      dialect fault response validators
        models:      dialect validators
        rates:       validators
        buckets:     rates
        account:     buckets rates validators
        ideal:       rates validators
        rules:       fault validators
        emulator:    account answers dialect fault incoming journal models recording response rules script
                     validators
        writer:      journal response | | connection
        connection:  incoming journal response writer
        server:      account connection dialect emulator journal models recording rules script
        __init__:    account dialect fault faults journal models rates recorder recording rules script server
    """,
    "testing.text": """
        __init__:
        keywords:
        patterns:
        tokens:
        prose:       tokens
        formats:     prose
        validation:  keywords patterns
        schema:      formats keywords patterns prose validation
    """,
    "models": """
        base:
        completion:    base
        struct_value:  base
        chunk:         base completion struct_value
        __init__:      base chunk completion struct_value
    """,
    "wire": """
        __init__:
        codec:
        http_request:  codec
        redaction:
        header_values:
        quota:
        error_bodies:  codec header_values quota redaction
        completions:   codec error_bodies
        sse:
        chunks:        codec completions error_bodies sse
        raw_events:    chunks sse
        structured:    codec
        tool_calls:
        parts:         tool_calls
        accumulator:   parts tool_calls
        coalesce:      codec parts tool_calls
    """,
}

MOST_AT_THE_TOP = 14
"""Modules next to the packages: whoever opens the folder sees rooms, and not a wall of files."""
AT_THE_TOP = {"pyproject.toml", "README.md", "together_async", "tests", "benchmarks", "CHANGELOG.md", "LICENSE"}
"""All there is in the repository, except for names that begin with a dot."""

PURE = ("validation", "models", "request", "errors", "timeouts", "retry", "pricing", "wire")
"""Packages and modules of the top without I/O, clock or randomness: equal input gives equal output, and time is an
argument. Their imports are in this list too."""
PURE_INSIDE = {
    "ratelimit": {
        "admission",
        "backoff",
        "bucket",
        "congestion",
        "deadlock",
        "descriptors",
        "estimator",
        "found_rate",
        "headers",
        "lane",
        "limits",
        "queue",
        "rate_control",
        "schedule",
        "silent_refusals",
        "start",
        "turned_away",
    },
    "flow": {"chunk_log"},
    "fanout": {"defaults"},
    "batch": {"budget", "input", "outage", "record", "standing"},
    "batch.report": {"charts", "formats", "page", "statistics", "style", "time_charts", "timeline"},
}
"""The pure modules of packages that do more than decide."""
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
TYPES_ALONE = {"datetime"}
"""Modules of types and arithmetic that also have a clock, `now` and `utcnow`: a test looks for calls of those."""
CLOCKS = {"together_async.ratelimit.headers": {"time"}, "together_async.wire.error_bodies": {"time"}}
"""`time.time` stands there once, as the default of an argument."""

HEAVY = ("aiohttp", "cattrs", "click", "rich", "pydantic", "redis", "opentelemetry", "yarl", "multidict")
"""What `import together_async` does not load: it is needed on the first request, or for one door, or never."""

KINDS = ("import", "use", "types")
"""When an import happens: with the module, inside a function on first use, never (`if TYPE_CHECKING`)."""
Row = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[dotted.removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST, kind: str = "import") -> Iterator[tuple[str, str]]:
    """Every imported name of a module, with its kind."""
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


@functools.cache
def arrows() -> list[tuple[str, str, str]]:
    """Every import of one of our modules by another: who, which, when."""
    found = []
    ours = modules()
    for importer, path in ours.items():
        for kind, name in imports(ast.parse(path.read_text())):
            imported = name
            while imported and imported not in ours:
                imported = imported.rpartition(".")[0]
            if imported and imported != importer:
                found.append((importer, imported, kind))
    return found


def room(module: str, package: str = PACKAGE.name) -> str | None:
    """What a module is inside a package: one of its modules, one of its packages, `__init__`; None outside."""
    if module == package:
        return "__init__"
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


def written(table: str) -> dict[str, Row]:
    """The rows of a table."""
    rows = {}
    for row in re.split(r"\n(?=\s*\w+:)", table.strip()):
        name, _, cells = row.partition(":")
        rows[name.strip()] = dict(zip(KINDS, [set(cell.split()) for cell in f"{cells}||".split("|")], strict=False))
    return rows


def found(package: str) -> dict[str, Row]:
    """The same as it is in the code."""
    rows: dict[str, Row] = {
        name: {kind: set() for kind in KINDS} for module in modules() if (name := room(module, package)) is not None
    }
    for importer, imported, kind in arrows():
        here, there = room(importer, package), room(imported, package)
        if here is not None and there is not None and here != there:
            rows[here][kind].add(there)
    return rows


TABLES = {PACKAGE.name: PACKAGES, **{f"{PACKAGE.name}.{name}": table for name, table in MODULES.items()}}


def test_every_package_has_its_table():
    """A new package begins with its table, a new module with its row."""
    assert {name for name, path in modules().items() if path.stem == "__init__"} == set(TABLES)


@pytest.mark.parametrize("package", TABLES)
def test_imports_are_what_the_table_says(package):
    """No import that the table does not name, and no row that names an import which is not there."""
    assert found(package) == written(TABLES[package])


@pytest.mark.parametrize("package", TABLES)
def test_no_circles(package):
    """At run time, first use included, a row names only what stands above it."""
    above: set[str] = set()
    for name, row in written(TABLES[package]).items():
        assert row["import"] | row["use"] <= above, name
        above.add(name)


def test_no_circles_among_modules():
    """Nor is there one that leads through two packages."""
    needs: dict[str, set[str]] = {name: set() for name in modules()}
    for importer, imported, kind in arrows():
        if kind != "types":
            needs[importer].add(imported)
    done: set[str] = set()
    while len(done) < len(needs):
        ready = {name for name, others in needs.items() if name not in done and others <= done}
        assert ready, f"a circle among {sorted(set(needs) - done)}"
        done |= ready


def test_the_top_is_a_list_of_rooms():
    """Few modules stand next to the packages."""
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP


def test_the_repository_has_nothing_else_at_its_top():
    """Package, tests and benchmarks, and the files that every project has. Only what Git tracks counts."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    tracked = subprocess.run([git, "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    top = {path.partition("/")[0] for path in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == AT_THE_TOP


def pure_modules() -> dict[str, Path]:
    inside = {f"{PACKAGE.name}.{package}.{name}" for package, names in PURE_INSIDE.items() for name in names}
    return {name: path for name, path in modules().items() if room(name) in PURE or name in inside}


@pytest.mark.parametrize("module", pure_modules())
def test_pure_modules_are_pure(module):
    """No event loop, socket, clock or randomness, at import or later; their imports from this package are pure too."""
    tree = ast.parse(modules()[module].read_text())
    used = {name.split(".")[0] for kind, name in imports(tree) if kind != "types"}
    assert (used & IMPURE) - TYPES_ALONE == CLOCKS.get(module, set())
    assert not any(isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow"} for node in ast.walk(tree))
    reached = {imported for importer, imported, kind in arrows() if importer == module and kind != "types"}
    assert reached <= set(pure_modules())


def test_the_clock_is_only_a_default():
    """`time.time` stands once in what is pure, where a caller may pass another clock."""
    for module in CLOCKS:
        tree = ast.parse(modules()[module].read_text())
        uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "time"]
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        defaults = [default for each in functions for default in (*each.args.defaults, *each.args.kw_defaults)]
        clocks = [ast.unparse(default) for default in defaults if default and "time" in ast.unparse(default)]
        assert clocks == ["time.time"]
        assert len(uses) == 1


@pytest.mark.parametrize("names", [["together_async"], sorted(pure_modules())], ids=["the package", "what is pure"])
def test_import_loads_nothing_heavy(names):
    """A fresh process that imports the package, or all its pure modules, has no heavy or optional library."""
    code = f"import sys, {', '.join(names)}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
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
