"""A chat in aiohttp.web: tokens as they come, and a model that stops when the browser leaves.

    pip install together-async
    TOGETHER_API_KEY=... python -m together_async.examples.aiohttp_app

Then open http://127.0.0.1:8000
"""

import os
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from together_async import AsyncTogether, relay

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")

client = AsyncTogether()


class Question(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]


async def chat(request: web.Request) -> web.StreamResponse:
    try:
        question = msgspec.json.decode(await request.read(), type=Question)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    return await relay.aiohttp_response(request, client.stream(question.prompt, model=MODEL))


async def page(_: web.Request) -> web.FileResponse:
    return web.FileResponse(Path(__file__).with_name("page.html"))


app = web.Application()
app.add_routes([web.post("/chat", chat), web.get("/", page)])
app.cleanup_ctx.append(relay.lifespan(client))

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8000)
