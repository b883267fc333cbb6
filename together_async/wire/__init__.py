"""Bytes to values and back. Pure: no event loop, socket, clock or randomness; time is an argument.

Out: `http_request`. In, for a stream: `chunks` has `sse` split the bytes into payloads and `codec` decode each to a
chunk, and `accumulator` adds the chunks up (`parts` and `tool_calls` are its rules); `raw_events` in place of all that
for bytes that are passed on, `coalesce` for a slow reader. For a whole response: `completions`, `structured`. For
errors: `error_bodies`, with `quota`, and `redaction`, which keeps keys and prompts out of them. For both:
`header_values`.
"""
