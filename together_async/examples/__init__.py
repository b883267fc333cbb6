"""Complete apps, one screen each, with one page for all of them: tokens as they come, a stop button, errors as errors.

* `fastapi_app`, `starlette_app`, `aiohttp_app`: ask, and read the answer from the same response.
* `resume_app`: ask once, read in any tab, also after a reload or a lost connection.

Each says in its first lines how it is run. Without a key, `together-async serve` is a service to try them with:
TOGETHER_BASE_URL is the address which it prints.
"""
