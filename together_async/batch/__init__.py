"""Durable, resumable batches: a file of requests in, a file of results out.

`AsyncTogether.run_batch` runs one. `Batch` is the same as an object, for programs that show its progress or stop it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from together_async.batch.options import BatchOptions
    from together_async.batch.output import OutputError
    from together_async.batch.plan import BatchInputError
    from together_async.batch.progress import BatchProgress, BatchSummary
    from together_async.batch.record import Record
    from together_async.batch.runner import Batch

__all__ = ["Batch", "BatchInputError", "BatchOptions", "BatchProgress", "BatchSummary", "OutputError", "Record"]

_ON_FIRST_USE = {
    "Batch": "runner",
    "BatchInputError": "plan",
    "BatchOptions": "options",
    "BatchProgress": "progress",
    "BatchSummary": "progress",
    "OutputError": "output",
    "Record": "record",
}
"""The public names and their modules, which are imported when a name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
