"""Fixtures of the tests of calls."""

import pytest

from together_async.calls.call import Call


@pytest.fixture
def longest_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance makes each delay as long as it can be."""
    kwdefaults = Call.__init__.__kwdefaults__
    assert kwdefaults is not None
    monkeypatch.setitem(kwdefaults, "rng", lambda: 1.0)
