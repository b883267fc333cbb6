"""Many requests at once, with each client as its documentation says: a function for each.

A client without a feature for it gets a semaphore and `gather`, which is what everybody writes.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.fanout.workload import MODEL, Job


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def gathered(job: Job, ask: Callable[[str], Awaitable[str | None]]) -> None:
    places = asyncio.Semaphore(job.concurrency)

    async def request(text: str) -> None:
        async with places:
            try:
                job.note(await ask(text))
            except Exception as error:
                job.outcomes[type(error).__name__] += 1

    await asyncio.gather(*(request(text) for text in job.texts))


async def raw(job: Job) -> None:
    """The yardstick: the shortest loop with aiohttp and msgspec, into narrow attrs classes. It checks nothing.

    The session has aiohttp's defaults, with their limit of five minutes for a request: like every other client here, it
    never waits for ever.
    """
    import aiohttp
    import msgspec

    from benchmarks.clients.narrow import NarrowChunk, NarrowCompletion

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(NarrowCompletion).decode
    decode_chunk = msgspec.json.Decoder(NarrowChunk).decode
    url, headers = f"{job.base_url}/chat/completions", {"Content-Type": "application/json", "Authorization": "Bearer x"}
    places = asyncio.Semaphore(job.concurrency)

    async def whole(text: str) -> None:
        async with places:
            body = encode({"model": MODEL, "messages": messages(text)})
            async with session.post(url, data=body, headers=headers) as response:
                completion = decode(await response.read())
                job.note(completion.choices[0].message.content)

    async def streamed(text: str) -> None:
        async with places:
            body = encode({"model": MODEL, "messages": messages(text), "stream": True})
            async with session.post(url, data=body, headers=headers) as response:
                tail, pieces = b"", []
                async for data in response.content.iter_any():
                    *events, tail = (tail + data).split(b"\n\n")
                    chunks = (decode_chunk(event[6:]) for event in events if event != b"data: [DONE]")
                    pieces += [chunk.choices[0].delta.content or "" for chunk in chunks]
                job.note("".join(pieces))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*map(streamed if job.stream else whole, job.texts))


async def ours(job: Job) -> None:
    from together_async import AsyncTogether

    async with AsyncTogether("key-of-the-benchmarks", base_url=job.base_url) as client:
        async for result in client.map(job.texts, model=MODEL, concurrency=job.concurrency, stream=job.stream):
            if result.completion is None:
                job.outcomes[type(result.error).__name__] += 1
            else:
                job.note(result.completion.text)


async def _sdk(job: Job, made: Any, http_client: Any) -> None:
    async with made(api_key="x", base_url=job.base_url, max_retries=0, http_client=http_client) as client:
        create = client.chat.completions.create

        async def whole(text: str) -> str | None:
            completion = await create(model=MODEL, messages=messages(text))
            answer: str | None = completion.choices[0].message.content
            return answer

        async def streamed(text: str) -> str:
            stream = await create(model=MODEL, messages=messages(text), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        await gathered(job, streamed if job.stream else whole)


async def openai(job: Job) -> None:
    import openai

    await _sdk(job, openai.AsyncOpenAI, None)


async def openai_aiohttp(job: Job) -> None:
    import openai

    await _sdk(job, openai.AsyncOpenAI, openai.DefaultAioHttpClient())


async def together(job: Job) -> None:
    import together

    await _sdk(job, together.AsyncTogether, None)


async def together_aiohttp(job: Job) -> None:
    import together

    await _sdk(job, together.AsyncTogether, together.DefaultAioHttpClient())


async def litellm(job: Job) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import fetches a price list
    import litellm

    async def ask(text: str) -> str | None:
        completion = await litellm.acompletion(
            model=f"together_ai/{MODEL}", messages=messages(text), api_base=job.base_url, api_key="x"
        )
        answer: str | None = completion.choices[0].message.content
        return answer

    await gathered(job, ask)


async def async_batch_llm(job: Job) -> None:
    from async_batch_llm import ProcessorConfig, llm, process_stream

    strategy = llm(f"openai-compatible:{MODEL}", base_url=job.base_url, api_key="x", max_connections=job.concurrency)
    async for result in process_stream(strategy, list(job.texts), config=ProcessorConfig(concurrency=job.concurrency)):
        if result.success:
            job.note(result.output)
        else:
            job.outcomes[type(result.exception).__name__] += 1


async def lm_deluge(job: Job) -> None:
    from lm_deluge import LLMClient
    from lm_deluge.models import register_model

    os.environ["FANOUT_KEY"] = "x"
    register_model(MODEL, MODEL, job.base_url, "FANOUT_KEY")
    # The default rates are those of a small account.
    client = LLMClient(
        MODEL,
        max_concurrent_requests=job.concurrency,
        max_requests_per_minute=100_000_000,
        max_tokens_per_minute=100_000_000_000,
    )
    for response in await client.process_prompts_async(list(job.texts), show_progress=False):
        if response is None or response.is_error:
            job.outcomes[f"status {response.status_code}" if response else "nothing"] += 1
        else:
            job.note(response.completion)
