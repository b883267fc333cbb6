"""Fixtures of the tests of HTTP."""

import pytest
import trustme

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()
