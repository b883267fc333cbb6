"""The whole package: the same text from the same seed in every process, its imports, its speed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from together_async.testing import text as package
from together_async.testing.text.prose import (
    plausible_text,
)
from together_async.testing.text.tokens import tokens_of

SCRIPT = r"""
from random import Random
from together_async.testing.text.formats import FORMATS
from together_async.testing.text.patterns import matching
from together_async.testing.text.prose import plausible_length, plausible_text
from together_async.testing.text.schema import instance_of, tool_arguments
from together_async.testing.text.tokens import argument_pieces
rng = Random(7)
print(plausible_text(rng, 300), plausible_length(rng))
print([matching(pattern, rng) for pattern in ("[^a]{30}", r"\W\D\S.{30}", "[^b-z]")])
print([instance_of({"format": name}, rng) for name in FORMATS])
text = tool_arguments({"properties": {n: {"items": {"type": ["null", "string"]}} for n in "abcdef"}}, rng)
print(argument_pieces(text, rng), instance_of({"minProperties": 9}, rng), instance_of({}, rng))
"""


def test_the_same_seed_says_the_same():
    """In every process, whatever its hash seed."""
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 2000


@pytest.mark.parametrize("module", sorted(Path(package.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_not_loaded_at_import(module):
    """The modules import the standard library and one another alone; rstr is loaded by the first pattern."""
    tree = ast.parse(module.read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    names = {name for name in names if not name.startswith(package.__name__)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert not names & {"asyncio", "datetime", "os", "random", "secrets", "time", "uuid"}


def test_speed():
    """Cutting and writing cost well below a stream's token; the limits are ten times the usual, for slow machines."""
    rng = Random(1)
    before = time.process_time()
    text = plausible_text(rng, 50_000)
    between = time.process_time()
    tokens_of(text)
    assert (between - before) / 50_000 < 5e-6
    assert (time.process_time() - between) / 50_000 < 2e-6
