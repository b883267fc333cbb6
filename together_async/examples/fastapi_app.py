"""A chat in FastAPI: tokens as they come, and a model that stops when the browser leaves.

    pip install together-async fastapi uvicorn
    TOGETHER_API_KEY=... uvicorn together_async.examples.fastapi_app:app

Then open http://127.0.0.1:8000
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from together_async import AsyncTogether
from together_async.relay import EventSourceResponse, lifespan

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")
PAGE = Path(__file__).with_name("page.html")

client = AsyncTogether()
app = FastAPI(lifespan=lifespan(client))


class Question(BaseModel):
    """What the page sends."""

    prompt: str = Field(min_length=1, max_length=20_000)


@app.post("/chat", response_class=EventSourceResponse)
async def chat(question: Question) -> EventSourceResponse:
    """Asks, and streams the answer."""
    return EventSourceResponse(client.stream(question.prompt, model=MODEL))


@app.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE)
