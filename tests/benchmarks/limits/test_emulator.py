"""The account that the benchmarks' emulator plays."""

import dataclasses

from benchmarks.limits.emulator import RecordingAccount
from benchmarks.limits.workload import SETTINGS
from together_async.testing import Rate


def statuses(account: RecordingAccount, requests: int) -> list[int]:
    return [account.admit("limits/model", 100).status for _ in range(requests)]


def test_a_silent_account_counts_as_ever_and_tells_nothing() -> None:
    setting = SETTINGS["silent, 1/s"]
    account = RecordingAccount(setting, 1.0, 1)
    verdicts = [account.admit("limits/model", 100) for _ in range(2)]
    assert [(verdict.status, verdict.headers) for verdict in verdicts] == [(200, {}), (429, {})]
    assert verdicts[0].body is None
    assert [(status, requests) for _, status, _, requests, _ in account.verdicts] == [(200, 1.0), (429, 1.0)]


def test_a_stray_429_tells_nothing_and_takes_nothing_while_the_others_tell() -> None:
    account = RecordingAccount(SETTINGS["first"], 1.0, 1)
    assert account.admit("limits/model", 100).headers == {}
    answered = account.admit("limits/model", 100)
    assert answered.headers["x-ratelimit-limit"] == "10"
    assert answered.headers["x-ratelimit-remaining"] == "9"


def test_the_same_seed_has_the_same_strays() -> None:
    setting = dataclasses.replace(SETTINGS["tenth"], rate=Rate())
    first, again, other = (statuses(RecordingAccount(setting, 1.0, seed), 200) for seed in (1, 1, 2))
    assert first == again != other
    assert 5 < first.count(429) < 40
