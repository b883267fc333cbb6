"""Staying inside an account's limits, and using all of them.

Pure, with the time as an argument: `limits` (values), `headers` (what responses report), `estimator` (tokens before
they are known), `start` (a model of which nothing is known), `silent_refusals` and `backoff` (429s that report
nothing), `found_rate`, `rate_control` and `bucket` (how fast), `congestion` (how many at once), `queue` and `lane` (one
model), `schedule`, `descriptors`, `turned_away` and `admission` (all models: which call is sent next), `deadlock`
(calls that would never be). With an event loop: `driver`, which runs the admission for the calls, and `limiter`, its
public face.
"""

from together_async.ratelimit.limiter import RateLimiter
from together_async.ratelimit.limits import Limits, LimitsState, ModelState, Priority

__all__ = ["Limits", "LimitsState", "ModelState", "Priority", "RateLimiter"]
