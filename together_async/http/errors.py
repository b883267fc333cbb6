"""Errors that only this package raises; apart from `transport` and `response`, which load aiohttp."""

from together_async.errors import APIConnectionError


class ClientClosedError(APIConnectionError):
    """The client was closed; make a new one, or close it later."""

    transient = False


class InflationError(APIConnectionError):
    """A compressed body inflates beyond reason, which is likely an attack.

    Users do not see it: `calls` makes a StreamProtocolError of it, `read_all` an APIResponseValidationError.
    """
