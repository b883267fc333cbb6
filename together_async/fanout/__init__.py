"""Many calls at once: `map` over prompts, `merge` of live streams.

`group` has the tasks that both have in common; `defaults`, `pending` and `results` are what `map` takes, does for each
request, and returns.
"""
