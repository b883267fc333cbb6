"""A chat in Starlette: tokens as they come, and a model that stops when the browser leaves.

    pip install together-async starlette uvicorn
    TOGETHER_API_KEY=... uvicorn together_async.examples.starlette_app:app

Then open http://127.0.0.1:8000
"""

import os
from pathlib import Path
from typing import Annotated

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from together_async import AsyncTogether, relay

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")

client = AsyncTogether()


class Question(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]


async def chat(request: Request) -> relay.EventSourceResponse:
    try:
        question = msgspec.json.decode(await request.body(), type=Question)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, str(error)) from error
    return relay.EventSourceResponse(client.stream(question.prompt, model=MODEL))


async def page(_: Request) -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


app = Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/", page)], lifespan=relay.lifespan(client))
