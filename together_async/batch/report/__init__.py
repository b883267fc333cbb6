"""The report of a batch: one page of HTML that holds all it needs and loads nothing. Pure.

What it says is counted in `tally` and `course`, drawn in `charts`, put together in `page`. No text of a prompt or an
answer is in it: records have none. custom_ids and messages are others' texts; they are escaped, and beside that the
page forbids itself scripts and everything from outside.
"""

from together_async.batch.report.page import render
from together_async.batch.report.timeline import Sample

__all__ = ["Sample", "render"]
