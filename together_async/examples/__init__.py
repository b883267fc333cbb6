"""Complete apps, one screen each, with one page for all of them: tokens as they come, a stop button, errors as errors.

* `fastapi_app`, `starlette_app`, `aiohttp_app`: the response to the question streams the answer.
* `resume_app`: ask once, and read the answer in any tab, also after a reload or a lost connection.

The first lines of each show how to run it. To try them without a key, run `together-async serve`, and set
TOGETHER_BASE_URL to the address that it prints.
"""
