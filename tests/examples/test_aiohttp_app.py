"""The example for aiohttp.web, which runs with this package's own dependencies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.example_apps import FOLDER

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_one_app_needs_the_core_dependencies_alone() -> None:
    """`python -m together_async.examples.aiohttp_app` runs where there is no other framework, on loopback."""
    code = """
import importlib.abc, runpy, sys
from aiohttp import web

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("click", "fastapi", "pydantic", "rich", "rstr", "starlette", "uvicorn"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
web.run_app = lambda app, **given: print(sorted(given.items()), *sorted(route.method for route in app.router.routes()))
runpy.run_module("together_async.examples.aiohttp_app", run_name="__main__")
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=FOLDER.parents[1])
    assert done.stderr == ""
    assert done.stdout == "[('host', '127.0.0.1'), ('port', 8000)] GET HEAD POST\n"
