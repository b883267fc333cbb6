"""Fixtures of the whole-system tests."""

from collections.abc import Iterator

import pytest

from support.relay_apps import Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The model behind the relays of a module's tests (`test_relay_openai` has one of its own)."""
    with Upstream() as running:
        yield running
