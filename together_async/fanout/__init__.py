"""Many calls at once: `map` over prompts, `merge` of live streams."""
