"""What a loop has read is compared with what the model said."""

import pytest

from benchmarks.life.plan import Plan
from benchmarks.life.readings import pieces_of, wrong_text
from together_async import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    Retry,
    Timeouts,
    TogetherError,
)


def planned(reading: str) -> Plan:
    return Plan(7, reading, "end", "m", "none", 3, 1, 0.1, Timeouts(), Retry(), 0.4)


def chunk(content: str, index: int = 0) -> ChatCompletionChunk:
    return ChatCompletionChunk(choices=[ChunkChoice(index=index, delta=Delta(content=content))])


def test_a_whole_text_is_right_however_it_was_read() -> None:
    assert planned("text").text() == "7.0 1 2"
    assert wrong_text(planned("text"), ["7.0", " 1 2"]) == ""
    assert wrong_text(planned("chunks"), [chunk("7.0 1 2"), chunk("7.1 1 2", 1)]) == ""
    assert wrong_text(planned("batches"), [[chunk("7.0"), chunk(" 1")], [chunk(" 2")]]) == ""
    assert wrong_text(planned("merge"), [(key, chunk("7.0 1 2")) for key in range(3)]) == ""
    assert wrong_text(planned("texts"), [(0, "7.0 1 2"), (1, "7.1 1 2")]) == ""
    completion = ChatCompletion(choices=[Choice(index=0, message=ChatCompletionMessage(content="7.0 1 2"))])
    assert wrong_text(planned("create"), [completion]) == ""


def test_a_silent_loss_shows() -> None:
    assert wrong_text(planned("text"), ["7.0", " 2"]) == "5 of 7 characters of 0"
    assert wrong_text(planned("text"), []) == "0 of 7 characters of 0"
    assert wrong_text(planned("tee"), [(0, chunk("7.0 1 2")), (1, chunk("7.0"))]) == "3 of 7 characters of 1"
    assert wrong_text(planned("texts"), [(0, "7.0 1 2")]) == "0 of 7 characters of 1"


def test_an_error_among_the_items_is_raised() -> None:
    with pytest.raises(TogetherError):
        [*pieces_of(("a", TogetherError("broke")))]
