"""What chunks add up to: texts, the facts of the whole, and the parts of a choice."""

import pytest

from together_async.models import ChatCompletionChunk, ChunkChoice, Delta, Logprobs, make
from together_async.wire.parts import BLOCK, ChoiceParts, DocumentFacts, Text
from together_async.wire.tool_calls import ToolCalls


def test_a_text_without_a_piece_is_none_and_an_empty_piece_is_a_text():
    """Null and the empty text are two values on the wire."""
    text = Text()
    assert text.joined() is None
    text.add("")
    assert (text.joined(), text.pieces) == ("", [])


def test_many_pieces_become_a_block_and_the_list_stays():
    """Readers hold the list of pieces, so it is emptied and not replaced."""
    text = Text()
    pieces = text.pieces
    for _ in range(BLOCK - 1):
        text.add("x")
    assert not text.compact()
    text.add("x")
    assert text.compact()
    pieces.append("y")
    assert (text.blocks, text.pieces, text.joined()) == (["x" * BLOCK], ["y"], "x" * BLOCK + "y")


def test_the_first_fact_that_is_not_empty_counts():
    """An empty value is kept until another comes; a field that never came is not there."""
    facts = DocumentFacts(("id", "model", "created"))
    for chunk in (make(ChatCompletionChunk, id="", model="m"), make(ChatCompletionChunk, id="a", model="n")):
        facts.add(chunk)
    assert facts.values == {"id": "a", "model": "m"}
    assert facts.missing == ("created",)


@pytest.mark.parametrize(
    ("choice", "generated"),
    [
        (make(ChunkChoice, delta=Delta(content="a")), True),
        (make(ChunkChoice, text="a"), True),
        (make(ChunkChoice, delta=Delta(refusal="a")), True),
        (make(ChunkChoice, delta=Delta(role="assistant", content="")), False),
        (make(ChunkChoice, delta=Delta(), finish_reason="stop"), False),
    ],
)
def test_what_counts_as_generated(choice, generated):
    """Text in either shape does; a role, an empty text and a finish reason do not."""
    assert ChoiceParts(0, ToolCalls()).add(choice) is generated


def test_a_token_without_an_id_has_none_in_its_place():
    """The lists of `Logprobs` stay parallel."""
    parts = ChoiceParts(0, ToolCalls())
    for token_id in (None, 7, None):
        parts.add(ChunkChoice(delta=Delta(content="a", token_id=token_id), logprobs=-0.5))
    expected = make(Logprobs, token_ids=(None, 7, None), tokens=("a",) * 3, token_logprobs=(-0.5,) * 3)
    assert parts.joined_logprobs() == expected
