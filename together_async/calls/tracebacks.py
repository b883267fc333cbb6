"""`let_go`: an error that its caller keeps holds what it shows, and nothing of the call.

A traceback holds the frames that the error went through, and a frame holds its variables: the request, its body, the
response, the client. The error of a call with a long prompt would hold several copies of the prompt for as long as
anybody keeps it, in a list of failures or in a log's queue. So the frames of this package, and those below it (aiohttp,
asyncio), are taken out of the tracebacks of an error and of its causes. Their types and texts stay, and so do all
frames of the caller's. In asyncio's debug mode every frame stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Final

_LIBRARIES: Final = frozenset({"together_async", "aiohttp", "aiohappyeyeballs", "cattrs"})
_STANDARD: Final = sys.stdlib_module_names - {"test"}  # which is a usual name for a package of tests
_GENERATED: Final = "<cattrs generated"


def let_go(error: BaseException) -> None:
    """Takes frames that are not the caller's out of the tracebacks of an error that is about to be raised again.

    Call it where an error leaves this package, in the `except` block that raises it with a plain `raise`: the frame of
    the block goes too. The frames that the error passes on its way from there, as those of a reader's `__anext__`, go
    in the next turn of the event loop.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a coroutine that is closed after the end of its loop: nobody gets this error
        return
    if not loop.get_debug():
        strip(error)
        with contextlib.suppress(TypeError):  # a ValueError has no weak references; it passes no other frame
            loop.call_soon(_strip_later, weakref.ref(error))


def _strip_later(kept: weakref.ref[BaseException]) -> None:
    error = kept()
    if error is not None:
        strip(error)


def strip(error: BaseException) -> None:
    """Takes the frames out, of an error and of what it was raised from; changes both in place.

    Errors that the caller was handling when this one came are left as they are: the first frame of each is the
    caller's.
    """
    seen = {id(error)}
    pending = [error]
    while pending:
        link = pending.pop()
        hidden = link.__context__ if link.__suppress_context__ else None
        if hidden is not None and hidden is not link.__cause__ and _is_internal(hidden):
            link.__context__ = None  # nobody is shown it
        parts = link.exceptions if isinstance(link, BaseExceptionGroup) else ()
        for origin in (link.__cause__, link.__context__, *parts):
            if origin is not None and id(origin) not in seen and _is_internal(origin):
                seen.add(id(origin))
                pending.append(origin)
        link.__traceback__ = _callers_frames(link.__traceback__)


def _is_internal(error: BaseException) -> bool:
    traceback = error.__traceback__
    return traceback is None or _root(traceback.tb_frame) in _LIBRARIES | _STANDARD


def _callers_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Returns a traceback without the frames of libraries; those that the caller's own code has called stay."""
    entries, called_by_caller = list[TracebackType](), False
    for entry in _entries(traceback):
        root = _root(entry.tb_frame)
        if root not in _LIBRARIES and (called_by_caller or root not in _STANDARD):
            entries.append(entry)
            called_by_caller = True
    kept: TracebackType | None = None
    for entry in reversed(entries):
        entry.tb_next = kept
        kept = entry
    return kept


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _root(frame: FrameType) -> str:
    """Returns the top-level package of the code of a frame."""
    if frame.f_code.co_filename.startswith(_GENERATED):
        return "cattrs"
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""
