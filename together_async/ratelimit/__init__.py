"""Staying inside an account's limits, and using all of them.

Pure, with the time as an argument: `limits` (values), `told` (what headers say), `estimate` (tokens before they are
known), `bucket` (rates), `window` (how much at once), `admission` (who goes next). With an event loop: `limiter`.
"""

from together_async.ratelimit.limiter import RateLimiter
from together_async.ratelimit.limits import Limits, LimitsState, ModelState, Priority

__all__ = ["Limits", "LimitsState", "ModelState", "Priority", "RateLimiter"]
