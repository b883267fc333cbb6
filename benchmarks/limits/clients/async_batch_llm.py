"""Many calls with `async-batch-llm`, its strategy for servers like ours, and `process_stream`.

`plain` is its quick start, with ten at once. `advised` follows "Token-aware admission" and "Choosing your limits": both
rates, an estimator that knows the usual length of an answer, ten at once, a cooldown for a provider with short windows.
The buckets of a fifth of a second are ours: with buckets of a second, like the account's, it met 429s and reached 14 %
of the ideal under the fixed account.
"""

from async_batch_llm import CharacterTokenEstimator, ProcessorConfig, RateLimitConfig, llm, process_stream

from benchmarks.limits.clients.job import Job

AT_ONCE = 10


def config(job: Job) -> ProcessorConfig:
    if job.how == "plain":
        return ProcessorConfig(concurrency=AT_ONCE)
    return ProcessorConfig(
        concurrency=AT_ONCE,
        max_requests_per_minute=job.requests_per_minute,
        max_tokens_per_minute=job.tokens_per_minute,
        token_estimator=CharacterTokenEstimator(expected_output_tokens=job.max_tokens // 2),
        quota_burst_seconds=0.2,
        rate_limit=RateLimitConfig(cooldown_seconds=30.0, max_cooldown_seconds=300.0),
    )


async def run(job: Job) -> None:
    job.on_begun()
    strategy = llm(
        f"openai-compatible:{job.model}",
        base_url=job.base_url,
        api_key="x",
        generation_config={"max_tokens": job.max_tokens},
    )
    async for result in process_stream(strategy, list(job.texts), config=config(job)):
        error = type(result.exception).__name__ if result.exception else result.error_category or "failed"
        job.outcomes["ok" if result.success and result.output else error] += 1
