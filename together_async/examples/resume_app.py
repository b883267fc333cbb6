"""A chat whose answers outlive reloads, lost connections and closed tabs, by `relay.Hub` and `EventSource`.

    pip install together-async fastapi uvicorn
    TOGETHER_API_KEY=... uvicorn together_async.examples.resume_app:app

Then open http://127.0.0.1:8000
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from together_async import AsyncTogether, TogetherError, relay

MODEL = os.environ.get("TOGETHER_MODEL", "meta-llama/Llama-3.3-70B-Instruct-Turbo")

client, hub = AsyncTogether(), relay.Hub()
app = FastAPI(lifespan=relay.lifespan(client, hub), exception_handlers={TogetherError: relay.refuse})


class Question(BaseModel):
    prompt: str = Field(min_length=1, max_length=20_000)


@app.post("/chat", status_code=202)
async def ask(question: Question) -> dict[str, str]:
    return {"id": hub.start(client.stream(question.prompt, model=MODEL))}


@app.get("/chat/{id}")
async def answer(id: str) -> relay.EventSourceResponse:
    return relay.EventSourceResponse(hub.join(id))


@app.delete("/chat/{id}", status_code=204)
async def stop(id: str) -> None:
    await hub.stop(id)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))
