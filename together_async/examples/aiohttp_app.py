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

from together_async import AsyncTogether
from together_async.relay import aiohttp_response, lifespan

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")
PAGE = Path(__file__).with_name("page.html")

client = AsyncTogether()
routes = web.RouteTableDef()


class Question(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]


@routes.post("/chat")
async def chat(request: web.Request) -> web.StreamResponse:
    question = await request.json(loads=msgspec.json.Decoder(Question).decode)
    return await aiohttp_response(request, client.stream(question.prompt, model=MODEL))


@routes.get("/")
async def page(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application()
app.add_routes(routes)
app.cleanup_ctx.append(lifespan(client))

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8000)
