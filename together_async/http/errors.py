"""Errors of a response's body which the caller of this package turns into public ones."""

from together_async.errors import APIConnectionError


class InflationError(APIConnectionError):
    """A compressed body inflates beyond reason, which is likely an attack.

    Users do not see it: a stream raises StreamProtocolError, a whole response APIResponseValidationError.
    """
