"""The report of a batch: one self-contained page of HTML. Pure.

Its numbers are counted in `statistics` and `timeline`, written in `formats`, drawn in `charts` and `time_charts`, and
put together in `page`. The page has no text of a prompt or a completion, since records have none. custom_ids and error
messages come from others: they are escaped, and the page's own policy forbids scripts and everything external.
"""

from together_async.batch.report.page import render
from together_async.batch.report.timeline import Sample

__all__ = ["Sample", "render"]
