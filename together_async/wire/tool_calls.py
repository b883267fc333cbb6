"""The rules of tool calls in a stream: which call a piece belongs to, and how the pieces of a call add up. Pure.

A piece (`ToolCallDelta`) belongs to the call with its `index`; a piece without an index, to the last call. It begins a
new call when there is no such call yet, when it has another id than that call, or, without an index, when it has a
name and the call has both a name and arguments already.

`ToolCalls` knows every piece of the stream, and decides. `MergedToolCalls` knows only some of them, and merges two
pieces only where they belong to one call whatever came before them.
"""

from __future__ import annotations

from together_async.models import Function, FunctionDelta, ToolCall, ToolCallDelta, make, present


class ToolCallParts:
    """What the pieces of one tool call add up to.

    Attributes:
        index: The call's; None if its first piece had none.
        id: The first id that is not empty; None before.
        type: The first type that is not empty; None before.
        name: The first name that is not empty; None before.
        arguments: The pieces of the arguments, none of them empty.
        has_empty_arguments: Whether an empty text has come as arguments, which is not null.
    """

    __slots__ = ("arguments", "has_empty_arguments", "id", "index", "name", "type")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []
        self.has_empty_arguments = False

    def add(self, piece: ToolCallDelta) -> None:
        """Adds a piece of this call."""
        self.id = self.id or piece.id
        self.type = self.type or piece.type
        if piece.function is not None:
            self.add_function(piece.function)

    def add_function(self, function: FunctionDelta) -> None:
        """Adds a piece of the call's function: the first name, all the arguments."""
        self.name = self.name or function.name
        if function.arguments:
            self.arguments.append(function.arguments)
        elif function.arguments is not None:
            self.has_empty_arguments = True

    def ends_before(self, piece: ToolCallDelta) -> bool:
        """Returns whether a piece begins another call; servers that repeat id and name in each piece mean one call."""
        if piece.id and self.id:
            return piece.id != self.id
        name = piece.function.name if piece.function is not None else None
        return bool(piece.index is None and name and self.name and self.arguments)

    def certainly_continues(self, piece: ToolCallDelta) -> bool:
        """Returns whether a piece is of this call whatever came before the two.

        Without an index a name or an id may begin a new call, which depends on what came before.
        """
        if piece.index != self.index:
            return False
        if piece.index is not None:
            return not piece.id or piece.id == self.id
        return not piece.id and not (piece.function is not None and piece.function.name)

    def function(self) -> Function:
        """Returns the function so far."""
        return Function(name=self.name or "", arguments="".join(self.arguments))

    def tool_call(self) -> ToolCall:
        """Returns the call so far."""
        return make(ToolCall, **present(id=self.id, type=self.type, function=self.function(), index=self.index))

    def function_delta(self) -> FunctionDelta:
        """Returns the pieces of the function as one."""
        given = self.arguments or self.has_empty_arguments
        return make(FunctionDelta, **present(name=self.name, arguments="".join(self.arguments) if given else None))

    def delta(self) -> ToolCallDelta:
        """Returns the pieces as one."""
        function = self.function_delta()
        given = present(index=self.index, id=self.id, type=self.type, function=function if vars(function) else None)
        return make(ToolCallDelta, **given)


class ToolCalls(list[ToolCallParts]):
    """The tool calls of one choice, from all its pieces: a list by arrival.

    It is the list itself, and does not hold one, which saves the garbage collector an object for each stream.
    """

    __slots__ = ("_unnumbered",)

    def __init__(self) -> None:
        super().__init__()
        self._unnumbered = False  # a piece without an index has come

    def call_of(self, piece: ToolCallDelta) -> ToolCallParts:
        """Returns the call that a piece belongs to, for `add`; a new one if the piece begins one."""
        found = self._last(piece.index)
        if found is None or found.ends_before(piece):
            found = self._begin(piece)
        return found

    def _last(self, index: int | None) -> ToolCallParts | None:
        """The last call with an index; for None the last call of all."""
        if index is None:
            return self[-1] if self else None
        return next((call for call in reversed(self) if call.index == index), None)

    def _begin(self, piece: ToolCallDelta) -> ToolCallParts:
        call = ToolCallParts(piece.index)
        self.append(call)
        return call

    def tool_calls(self) -> tuple[ToolCall, ...] | None:
        """Returns the calls by index, as in a whole response; by arrival if one has no index. None without a call."""
        if not self:
            return None
        calls: list[ToolCallParts] = self
        if all(call.index is not None for call in calls):
            calls = sorted(calls, key=lambda call: call.index or 0)
        return tuple(call.tool_call() for call in calls)


class MergedToolCalls(ToolCalls):
    """Pieces of tool calls from the middle of a stream, merged where that is safe."""

    __slots__ = ()

    def call_of(self, piece: ToolCallDelta) -> ToolCallParts:
        """Returns the merged piece that a piece can be added to without a change of meaning; else a new one."""
        # A piece without an index belongs to whichever call is the last, so none may be added to a call before it.
        self._unnumbered = self._unnumbered or piece.index is None
        found = self._last(None if self._unnumbered else piece.index)
        if found is None or not found.certainly_continues(piece):
            found = self._begin(piece)
        return found

    def deltas(self) -> tuple[ToolCallDelta, ...] | None:
        """Returns the merged pieces by arrival; None without a piece."""
        return tuple(call.delta() for call in self) if self else None
