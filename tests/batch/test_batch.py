"""The public names of the package, which load their modules on first use."""

import subprocess
import sys

import pytest

from together_async import batch


@pytest.mark.parametrize("name", batch.__all__)
def test_a_public_name_is_handed_on(name: str) -> None:
    assert getattr(batch, name).__name__ == name
    assert name in dir(batch)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'together_async\.batch' has no attribute 'nonsense'"):
        batch.nonsense  # noqa: B018 - the access is what is tested


def test_the_package_loads_none_of_its_modules() -> None:
    code = "import sys, together_async.batch; print(*[name for name in sys.modules if 'async.batch.' in name])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
