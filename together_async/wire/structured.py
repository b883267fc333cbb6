"""Completions as values of callers' own classes: attrs classes, dataclasses, TypedDicts, pydantic models. Pure.

The class's JSON schema is sent as `response_format`; the content is structured by cattrs (or pydantic), and content
that does not fit raises an error that says where.
"""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs
import msgspec

from together_async.errors import APIResponseValidationError
from together_async.models import ChatCompletion
from together_async.wire import codec

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")
_CONTENT = "$.choices[0].message.content"
MOST_CLASSES: Final = 64
"""Classes for which generated code is kept. The one that follows makes it begin anew, which costs some 2 ms, and each
of the others 1 ms more with its next use."""


@attrs.frozen
class ParsedCompletion(Generic[T]):
    """A completion, and its first choice's content as a value.

    Attributes:
        parsed: The value, of the class that the caller asked for.
        completion: The whole response.
    """

    parsed: T
    completion: ChatCompletion = attrs.field(repr=False)


def response_format(response_type: type[Any]) -> dict[str, Any]:
    """Returns the request's `response_format` for a class.

    Raises:
        TypeError: The class has no JSON schema.
    """
    name = getattr(response_type, "__name__", "response")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema(response_type)}}


def schema(response_type: type[Any]) -> dict[str, Any]:
    """Returns a class's JSON schema, the class itself at the top and others under `$defs`.

    Raises:
        TypeError: The class has no JSON schema.
    """
    if hasattr(response_type, "model_json_schema"):
        of_pydantic: dict[str, Any] = response_type.model_json_schema()
        return of_pydantic
    try:
        (root,), definitions = msgspec.json.schema_components((response_type,), ref_template="#/$defs/{name}")
    except TypeError as error:
        raise TypeError(
            f"response_type: {response_type!r} has no JSON schema ({error}); expected an attrs class, a dataclass, a "
            "TypedDict or a pydantic model"
        ) from error
    return _unfolded(root, definitions)


def _unfolded(root: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema with the root's definition in place of its `$ref`: servers expect an object at the top."""
    name = root.get("$ref", "").rpartition("/")[2]
    if name not in definitions:
        return {**root, "$defs": definitions} if definitions else root
    used = codec.encode(definitions).count(codec.encode({"$ref": root["$ref"]})[1:-1])
    others = {key: value for key, value in definitions.items() if key != name or used}
    return {**definitions[name], "$defs": others} if others else dict(definitions[name])


def parse(completion: ChatCompletion, response_type: type[T]) -> T:
    """Returns the content of a completion's first choice as a value.

    Args:
        completion: A completion of a request with the class's `response_format`.
        response_type: The class.

    Raises:
        APIResponseValidationError: No content, cut off by max_tokens, not JSON or not of the class; `.path` says where.
    """
    reason = completion.choices[0].finish_reason if completion.choices else None
    if reason == "length":
        raise _error("the answer was cut off at the token limit; raise max_tokens", completion)
    if not completion.text:
        raise _error(f"got no content (finish_reason {reason!r}), expected JSON", completion)
    validate = getattr(response_type, "model_validate_json", None)
    if validate is not None:
        of_pydantic: T = _by_pydantic(validate, completion)
        return of_pydantic
    try:
        value: T = _structurer.structure(codec.decode_json(completion.text.encode()), response_type)
    except codec.JSONError as error:
        raise _error(f"got text that is not JSON ({error})", completion) from error
    except Exception as error:  # cattrs collects whatever callers' classes raise
        message, path = _first_problem(error)
        raise _error(message, completion, path) from error
    return value


class Structurer:
    """Makes JSON values instances of callers' classes, with cattrs.

    A cattrs converter keeps what it has generated for a class, and with that the class, for ever. A program that makes
    a class for each call would grow by some 10 KB each time, so after `MOST_CLASSES` of them all are forgotten.
    """

    __slots__ = ("_classes", "_converter", "_sources")

    def __init__(self) -> None:
        self._converter: cattrs.Converter | None = None
        self._classes = set[Any]()
        self._sources = set[str]()  # of the generated functions, in `linecache`

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._classes)} classes>"

    def structure(self, value: Any, response_type: type[T]) -> T:
        """Returns the value as an instance of the class; raises what cattrs raises if it does not fit."""
        converter = self._converter
        if converter is not None and response_type in self._classes:
            return converter.structure(value, response_type)
        if converter is None or len(self._classes) >= MOST_CLASSES:
            converter = self._renew()
        self._classes.add(response_type)
        before = frozenset(linecache.cache)
        try:
            return converter.structure(value, response_type)
        finally:
            self._sources |= linecache.cache.keys() - before

    def _renew(self) -> cattrs.Converter:
        from cattrs.preconf.msgspec import make_converter  # noqa: PLC0415 - costs 10 ms, and streams do not need it

        self._classes.clear()
        for source in self._sources:
            linecache.cache.pop(source, None)
        self._sources.clear()
        self._converter = make_converter(detailed_validation=True)
        return self._converter


_structurer: Final = Structurer()


def _by_pydantic(validate: Any, completion: ChatCompletion) -> Any:
    try:
        return validate(completion.text)
    except ValueError as error:
        errors = getattr(error, "errors", None)  # of pydantic's ValueError; pydantic is not imported here
        problems: Any = errors(include_input=False, include_url=False) if errors else ()
        first = problems[0] if problems else {"loc": (), "msg": "not valid"}
        raise _error(str(first["msg"]), completion, "".join(f".{part}" for part in first["loc"])) from error


def _first_problem(error: Exception) -> tuple[str, str]:
    """Returns cattrs's message for the first value that does not fit, and its path."""
    from cattrs import transform_error  # noqa: PLC0415 - costs 10 ms, and streams do not need it

    message, _, path = transform_error(error)[0].partition(" @ $")
    return message, path


def _error(message: str, completion: ChatCompletion, path: str = "") -> APIResponseValidationError:
    where = _CONTENT + path
    return APIResponseValidationError(f"{where}: {message}", path=where, body=completion.text)
