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

from together_async import AsyncTogether, relay

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")

client = AsyncTogether()
app = FastAPI(lifespan=relay.lifespan(client))


class Question(BaseModel):
    prompt: str = Field(min_length=1, max_length=20_000)


@app.post("/chat")
async def chat(question: Question) -> relay.EventSourceResponse:
    return relay.EventSourceResponse(client.stream(question.prompt, model=MODEL))


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))
