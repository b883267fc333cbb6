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
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from together_async import AsyncTogether
from together_async.relay import EventSourceResponse, lifespan

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")
PAGE = Path(__file__).with_name("page.html")


class Question(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]


async def chat(request: Request) -> Response:
    try:
        question = msgspec.json.decode(await request.body(), type=Question)
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from error
    return EventSourceResponse(client.stream(question.prompt, model=MODEL))


async def page(_request: Request) -> Response:
    return FileResponse(PAGE)


client = AsyncTogether()
app = Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/", page)], lifespan=lifespan(client))
