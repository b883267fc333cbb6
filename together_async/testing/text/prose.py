"""Prose: English-looking sentences and paragraphs of an exact number of tokens."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from together_async.testing.text.tokens import tokens_of

if TYPE_CHECKING:
    from random import Random


class _Topic(NamedTuple):
    """The words of one subject: nouns, verbs with and without an object, adjectives, places.

    A word has at most 8 letters, counting the `s` that sentences add to things and verbs, so it is a single token.
    """

    person: str
    thing: str
    do: str
    touch: str
    quality: str
    place: str


_TOPICS = (
    _Topic(
        person="painter pilot shepherd walker",
        thing="cloud star planet comet kite shadow rainbow sunbeam",
        do="glow drift turn shimmer gather linger wander rise",
        touch="cover follow soften mirror colour light",
        quality="pale blue silver distant quiet golden cold bright",
        place="horizon valley hilltop steeple lake meadow",
    ),
    _Topic(
        person="sailor captain diver keeper",
        thing="wave boat gull tide sail pebble shell current",
        do="roll return swing settle sway wander whisper rest",
        touch="circle shape follow cool smooth move",
        quality="salty deep grey gentle restless clear broad green",
        place="harbour shore cliff pier bay island",
    ),
    _Topic(
        person="driver porter guard visitor",
        thing="train wagon signal ticket whistle bridge wheel lantern",
        do="wait slow depart stop hum rumble return rattle",
        touch="follow connect serve guide join enliven",
        quality="punctual long red modern narrow sturdy fast late",
        place="station platform tunnel village river town",
    ),
    _Topic(
        person="cook guest host potter",
        thing="kettle cup teapot spoon biscuit saucer blend tray",
        do="steam cool wait warm simmer settle sing gleam",
        touch="warm scent fill suit cheer please",
        quality="hot fragrant plain green strong sweet fresh mild",
        place="kitchen table window garden fire cupboard",
    ),
    _Topic(
        person="builder mechanic tinkerer printer",
        thing="motor lever gear spring pump piston belt lathe",
        do="spin click stop turn hum start tick work",
        touch="drive balance lift measure steer power",
        quality="precise simple polished heavy tireless small clever steady",
        place="workshop mill bench factory foundry shed",
    ),
    _Topic(
        person="gardener florist botanist farmer",
        thing="rose fern seed tulip beetle robin plum pear",
        do="grow ripen sleep thrive wake blossom spread rest",
        touch="shelter shade feed adorn fill border",
        quality="tender wild green sunny fragrant hardy young leafy",
        place="hedge orchard path pond wall gate",
    ),
    _Topic(
        person="reader printer teacher poet",
        thing="book letter map poem page chapter novel riddle",
        do="begin wander end linger travel wait rhyme matter",
        touch="explain recall praise fill explore mention",
        quality="short famous patient curious lively worn rare brief",
        place="library desk shelf museum school corner",
    ),
    _Topic(
        person="singer fiddler drummer dancer",
        thing="song drum flute tune chord ballad violin bell",
        do="swell fade pause soar begin return resound linger",
        touch="fill lift follow answer soothe shape",
        quality="bright slow tender merry solemn soft rich lilting",
        place="stage hall square balcony theatre terrace",
    ),
)
_COMMON = {
    "how": "slowly gently quietly calmly steadily freely softly evenly",
    "time": "autumn spring winter summer daylight twilight",
    "idea": "reason pattern rhythm balance secret lesson story habit",
    "sees": "counts admires sketches knows watches notices prefers studies",
}
_SENTENCES = """
Every {thing} {do}s.
The {person} smiles.
Most {thing}s {do}.
The {quality} {thing} {do}s.
Some {thing}s {do} {how}.
That is the {idea}.
The {person} knows why.
Each {thing} {touch}s the {place}.
The {person} {sees} the {thing}s.
In {time} the {thing}s {do}.
The {thing} is rather {quality}.
In {time}, the {thing}s {do}.
The {person} {sees} the {quality} {thing}s.
The {thing} is {quality} and {quality}.
By {time} the {thing} {do}s {how}.
Near the {place}, the {thing}s {do}.
A {thing} {do}s when the {person} waits.
The {quality} {thing}s {touch} the {quality} {place}.
There is a {idea} in every {thing}.
Near the {place}, every {thing} {do}s {how}.
The {person} {sees} a {thing} by the {place}.
In {time}, one {thing} {do}s {how} at last.
The {thing}s {do}, but the {place} stays {quality}.
Nobody knows the {idea} better than the {person}.
Beyond the {place}, a {quality} {thing} {do}s {how}.
When a {thing} {do}s, the {person} {sees} it.
The {thing}s {touch} the {place}, and the {person} smiles.
Before {time}, the {person} {sees} each {thing} once more.
Every {quality} {thing} {touch}s the {place} for a while.
The {person} says that the {quality} {thing}s {do} in {time}.
If the {thing} is {quality}, it {do}s near the {place}.
A {quality} {thing} {do}s {how}, while the {person} {sees} another.
The {idea} is simple: a {thing} {touch}s what it finds.
Most {thing}s {do} in {time}, when the {place} is {quality}.
Between the {place} and the {place}, a {quality} {thing} {do}s {how}.
People visit the {place} in {time}, since the {thing}s {do} then.
The {person} {sees} the {place}, where {quality} {thing}s {do} until {time}.
It takes a {quality} {thing} to {touch} the {place} so {how}.
First the {thing}s {do}, then the {thing}s {do}, and the {person} {sees} both.
Once the {quality} {thing} {do}s, the {person} leaves the {place} and waits.
There are {thing}s that {do} {how}, and there are {thing}s that {touch} the {place}.
The {person} has a {idea} for this: {quality} {thing}s {do} best near the {place}.
By the {place} the {person} {sees} how a {quality} {thing} can {touch} the {place}.
In {time} a {thing} may {do}, yet the {quality} {thing} near the {place} {do}s {how}.
"""
_SHORT = ("", "Yes", "Gladly.", "Of course.")
"""Texts of fewer tokens than the shortest sentence, by their number of tokens."""
_PARAGRAPH = range(40, 101)
"""Tokens in a paragraph."""


class _Sentence(NamedTuple):
    """A sentence for the `%` operator, with gaps for words, and its number of tokens whatever words fill them."""

    text: str
    gaps: tuple[str, ...]
    tokens: int


@functools.cache
def _sentences() -> tuple[_Sentence, ...]:
    lines = _SENTENCES.split("\n")[1:-1]
    gap = re.compile(r"\{(\w+)\}")
    return tuple(
        _Sentence(gap.sub("%s", line), tuple(gap.findall(line)), len(tokens_of(gap.sub("x", line)))) for line in lines
    )


@functools.cache
def sentences_of(tokens: int) -> tuple[_Sentence, ...]:
    """Returns the sentences of exactly this many tokens."""
    return tuple(sentence for sentence in _sentences() if sentence.tokens == tokens)


@functools.cache
def shortest_and_longest() -> tuple[int, int]:
    """Returns the tokens of the shortest and longest sentence; every number in between has a sentence."""
    lengths = [sentence.tokens for sentence in _sentences()]
    return min(lengths), max(lengths)


@functools.cache
def words_of(topic: int) -> dict[str, tuple[str, ...]]:
    """Returns the words of a topic by the gap they fill."""
    return {gap: tuple(words.split()) for gap, words in (_TOPICS[topic]._asdict() | _COMMON).items()}


def plausible_text(rng: Random, tokens: int) -> str:
    """Returns English-looking prose, in sentences and paragraphs.

    Args:
        rng: The source of randomness.
        tokens: The exact number of tokens by `tokens_of`, at least 0. 0 gives an empty text; from 2 on, the text ends
            with a full stop.

    Raises:
        ValueError: `tokens` is negative.
    """
    if tokens < 0:
        raise ValueError(f"tokens: got {tokens}, expected 0 or more")
    paragraphs = []
    while tokens > _PARAGRAPH.stop + _PARAGRAPH.start:  # enough for this paragraph, the line break, and another
        paragraphs.append(_paragraph(rng, length := rng.choice(_PARAGRAPH)))
        tokens -= length + 1
    return "\n\n".join([*paragraphs, _paragraph(rng, tokens)])


def _paragraph(rng: Random, tokens: int) -> str:
    if tokens < len(_SHORT):
        return _SHORT[tokens]
    words = words_of(rng.randrange(len(_TOPICS)))
    # Words are dealt like cards: none comes again before all the others have been used.
    deal = {gap: itertools.cycle(rng.sample(deck, len(deck))).__next__ for gap, deck in words.items()}
    return " ".join([sentence.text % tuple([deal[gap]() for gap in sentence.gaps]) for sentence in _plan(rng, tokens)])


def _plan(rng: Random, left: int) -> Iterator[_Sentence]:
    """Yields sentences that have `left` tokens in all, which must be at least the tokens of the shortest sentence."""
    shortest, longest = shortest_and_longest()
    while left > longest + shortest:
        yield (sentence := rng.choice(_sentences()))
        left -= sentence.tokens
    if left > longest:
        yield rng.choice(sentences_of(left // 2))
        left -= left // 2
    yield rng.choice(sentences_of(left))


def plausible_length(rng: Random) -> int:
    """Returns the tokens of an answer without a limit: 8 to 400, with a median of about 60."""
    return min(max(round(rng.lognormvariate(math.log(60), 0.8)), 8), 400)


def phrase(rng: Random, words: int) -> str:
    """Returns a thing with up to 8 adjectives before it, 1 to 9 words in all."""
    known = words_of(rng.randrange(len(_TOPICS)))
    return " ".join([*rng.sample(known["quality"], min(words - 1, 8)), rng.choice(known["thing"])])


def identifier(rng: Random) -> str:
    """Returns a name for a member of an object, such as `silver_kite`."""
    words = words_of(rng.randrange(len(_TOPICS)))
    return f"{rng.choice(words['quality'])}_{rng.choice(words['thing'])}"
