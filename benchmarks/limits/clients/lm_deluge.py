"""Many calls with `lm-deluge`. `plain` keeps its default rates; `advised` sets the account's, as its readme says."""

from typing import Any

from lm_deluge import LLMClient
from lm_deluge.models import register_model

from benchmarks.limits.clients.job import Job


async def run(job: Job) -> None:
    job.on_begun()
    register_model(job.model, job.model, job.base_url, "LIMITS_KEY")
    rates = (
        {}
        if job.how == "plain"
        else {
            "max_requests_per_minute": job.requests_per_minute,
            "max_tokens_per_minute": job.tokens_per_minute,
        }
    )

    def note(response: Any) -> Any:
        job.outcomes["ok"] += not response.is_error  # attempts that are retried pass here too
        return response

    client = LLMClient(job.model, max_new_tokens=job.max_tokens, postprocess=note, **rates)
    for response in await client.process_prompts_async(list(job.texts), show_progress=False):
        if response is None or response.is_error:
            job.outcomes[f"status {response.status_code}" if response else "nothing"] += 1
