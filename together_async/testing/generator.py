"""What the emulator's pretended model says: prose, JSON that fits a schema, tool arguments, and their tokens.

Pure: no clock and no chance of its own. Whatever is drawn is drawn from the caller's `random.Random`, so that the same
seed says the same thing in every process.
"""

from __future__ import annotations

import base64
import copy
import functools
import itertools
import json
import math
import operator
import re
import string
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")
Schema = Mapping[str, Any] | bool

# --- Tokens -----------------------------------------------------------------------------------------------------------

VOCABULARY = 128_000
"""How many token ids there are to pretend: 0 to 127,999, about the size of Llama 3's."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W\d_{_CJK}]"
_TOKEN = re.compile(
    # Every repetition has a bound, so that no text takes more than a few steps a character.
    r" ?[A-Za-z]{1,8}+(?!\w)"  # what most text is made of, with the cheapest test
    rf"| ?{_LETTER}{{1,8}}+(?!{_LETTER})"
    rf"| ?{_LETTER}{{5}}"  # a longer word, a piece at a time
    r"| ?\d{1,3}"
    r"| ?[^\w\s]{1,4}"
    rf"| ?[{_CJK}]{{1,2}}"
    r"|[\r\n]{1,8}"
    r"|\s{1,8}(?!\S)"  # leaves the last space to the word behind it
    r"|.",
    re.DOTALL,
)


def tokens_of(text: str) -> list[str]:
    """Cuts a text into plausible model tokens: words with the space before them, pieces of long words, punctuation.

    Returns:
        Tokens of 1 to 9 characters, which joined are the text; none for an empty text.
    """
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """Returns a token's pretended id, 0 to 127,999, the same in every process."""
    return zlib.crc32(token.encode("utf-8", "surrogatepass")) % VOCABULARY


# --- Prose ------------------------------------------------------------------------------------------------------------


class _Topic(NamedTuple):
    """The words of one subject: nouns, verbs with and without an object, adjectives, places.

    A word has 8 letters at most, with the `s` that sentences add to things and verbs, and so is one token.
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
"""What is said in fewer tokens than a sentence has."""
_PARAGRAPH = range(40, 101)


class _Sentence(NamedTuple):
    """A sentence with gaps for words, for the `%` operator, and how many tokens it has with any words in them."""

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
def _sentences_of(tokens: int) -> tuple[_Sentence, ...]:
    return tuple(one for one in _sentences() if one.tokens == tokens)


@functools.cache
def _shortest_and_longest() -> tuple[int, int]:
    """Returns the bounds between which there is a sentence of every number of tokens."""
    lengths = [one.tokens for one in _sentences()]
    return min(lengths), max(lengths)


@functools.cache
def _words(topic: int) -> dict[str, tuple[str, ...]]:
    return {gap: tuple(words.split()) for gap, words in (_TOPICS[topic]._asdict() | _COMMON).items()}


def plausible_text(rng: Random, tokens: int) -> str:
    """Returns English-looking prose, in sentences and paragraphs.

    Args:
        rng: Where chance comes from.
        tokens: How many tokens by `tokens_of`, exactly; 0 is an empty text, and from 2 on it ends with a full stop.

    Raises:
        ValueError: Fewer than 0 tokens.
    """
    if tokens < 0:
        raise ValueError(f"tokens: got {tokens}, expected 0 or more")
    paragraphs = []
    while tokens > _PARAGRAPH.stop + _PARAGRAPH.start:  # enough for this one, the line break, and another
        paragraphs.append(_paragraph(rng, length := rng.choice(_PARAGRAPH)))
        tokens -= length + 1
    return "\n\n".join([*paragraphs, _paragraph(rng, tokens)])


def _paragraph(rng: Random, tokens: int) -> str:
    if tokens < len(_SHORT):
        return _SHORT[tokens]
    words = _words(rng.randrange(len(_TOPICS)))
    # Words are dealt like cards, so that none comes again before the others have been.
    deal = {gap: itertools.cycle(rng.sample(deck, len(deck))).__next__ for gap, deck in words.items()}
    return " ".join([one.text % tuple([deal[gap]() for gap in one.gaps]) for one in _plan(rng, tokens)])


def _plan(rng: Random, left: int) -> Iterator[_Sentence]:
    """Yields sentences of so many tokens in all, for any number a single sentence can have or more."""
    shortest, longest = _shortest_and_longest()
    while left > longest + shortest:
        yield (one := rng.choice(_sentences()))
        left -= one.tokens
    if left > longest:
        yield rng.choice(_sentences_of(left // 2))
        left -= left // 2
    yield rng.choice(_sentences_of(left))


def plausible_length(rng: Random) -> int:
    """Returns how many tokens an answer has when nobody limits it: 8 to 400, half of them up to 60."""
    return min(max(round(rng.lognormvariate(math.log(60), 0.8)), 8), 400)


def _phrase(rng: Random, words: int) -> str:
    """Returns a thing and what it is like, in 1 to 9 words."""
    known = _words(rng.randrange(len(_TOPICS)))
    return " ".join([*rng.sample(known["quality"], min(words - 1, 8)), rng.choice(known["thing"])])


# --- Text that matches a regular expression ---------------------------------------------------------------------------

_SPREADS = (6, 2, 0, 16, 1, 64, 4, 200)
"""How often more than it must an unbounded repetition repeats, by attempt: most like the first, some need another."""
_ATTEMPTS = 64
_MOST_REPEATS = 50_000
_READABLE = string.printable[:95]  # not the tabs and line breaks behind them
_BEYOND_ASCII = "".join(map(chr, range(0xA1, 0x180)))
_ALPHABETS = {
    "printable": _READABLE,
    "whitespace": " ",
    # rstr makes this one from a set, whose order is another in every process
    "nonword": "".join(one for one in _READABLE if not (one.isalnum() or one == "_")),
}


def matching(pattern: str, rng: Random) -> str:
    """Returns a text that matches a regular expression from beginning to end.

    Lookarounds, back references and word boundaries are left to luck: some are met, some raise.

    Args:
        pattern: By Python's `re`, which reads most of what JSON Schema's patterns are written in.
        rng: Where chance comes from.

    Raises:
        ValueError: Not a regular expression, or none of a number of attempts matched.
        ModuleNotFoundError: `rstr` is not installed; the message says how.
    """
    return _matching(pattern, rng, lambda _: True)


def _matching(pattern: str, rng: Random, fits: Callable[[str], bool]) -> str:
    expression = _compiled(pattern)
    xeger = _xeger_class()(rng, **_ALPHABETS)
    for attempt in range(_ATTEMPTS):
        xeger.spread, xeger.repeats = _SPREADS[attempt % len(_SPREADS)], 0
        try:
            with warnings.catch_warnings(action="ignore"):  # said of the pattern again, each time it is parsed
                text: str = xeger.xeger(pattern)
        except (LookupError, RecursionError) as error:  # what rstr does not know, and sets without a character
            raise ValueError(f"pattern {pattern!r}: too unusual to make a text for; use a simpler one") from error
        if expression.fullmatch(text) and fits(text) and not _SURROGATE.search(text):
            return text
    raise ValueError(f"pattern {pattern!r}: none of {_ATTEMPTS} texts matched it; use a simpler one")


_SURROGATE = re.compile("[\ud800-\udfff]")


@functools.lru_cache(256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # "[[" may come to mean another thing one day
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern {pattern!r}: not a regular expression ({error})") from error


@functools.cache
def _xeger_class() -> type[Any]:
    try:
        from rstr.xeger import Xeger  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a text that matches a pattern needs the package rstr: pip install 'together-async[testing]'", name="rstr"
        ) from error

    class Bounded(Xeger):
        """Repeats a few times where rstr does up to 100, and draws the same in every process."""

        spread = 0
        repeats = 0

        def _handle_repeat(self, start_range: int, end_range: int, value: Any) -> str:
            times = self._random.randint(start_range, max(start_range, min(end_range, start_range + self.spread)))
            pieces: list[str] = []
            for _ in range(times):
                self.repeats += 1
                if self.repeats > _MOST_REPEATS:
                    raise ValueError(f"a pattern: more than {_MOST_REPEATS} repetitions; use fewer")
                pieces.extend(map(self._handle_state, value))
            return "".join(pieces)

        def _handle_in(self, value: Any) -> str:
            first, *others = value
            if first[0].name == "NEGATE":
                not_these = set().union(*map(self._members, others))
                left = [one for one in _READABLE if one not in not_these]
                return self._random.choice(left or [one for one in _BEYOND_ASCII if one not in not_these])
            return self._random.choice([one for item in value for one in self._members(item)])

        def _members(self, item: Any) -> Sequence[str]:
            opcode, value = item
            if opcode.name == "RANGE" and value[1] - value[0] > 512:  # all of Unicode, perhaps
                return [chr(self._random.randint(*value)) for _ in range(64)]
            members: Sequence[str] = self._handle_state(item)
            return members

    return Bounded


# --- JSON that fits a schema ------------------------------------------------------------------------------------------

_DEEP = 8
"""From this depth on, whatever may be left out is, and choices fall on what ends soonest."""
_TRIES = 20
_MOST_VALUES = 5_000


class _SpentError(ValueError):
    """So many values were made that there is no end in sight."""


def instance_of(schema: Schema, rng: Random) -> Any:
    """Returns a JSON value that a JSON Schema allows.

    Follows `type`, `enum`, `const`, `$ref` inside the schema, `allOf`, `anyOf`, `oneOf`, `not` and the limits of
    numbers, text, arrays and objects; whatever else the schema says is ignored. `examples` and `default` are taken when
    nothing that was made up fits.

    Args:
        schema: By draft 2020-12, as msgspec and pydantic write it. An empty one gives an object with an answer.
        rng: Where chance comes from.

    Raises:
        ValueError: No value was found, since there is none, none that ends, or none by luck: says where.
        ModuleNotFoundError: The schema has a `pattern`, and `rstr` is not installed; the message says how.
    """
    if schema is True or schema == {}:
        return {"answer": plausible_text(rng, plausible_length(rng))}
    try:
        return _Instances(schema, rng).value(schema, "$", 0)
    except (RecursionError, OverflowError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"$: not a JSON Schema that can be followed ({type(error).__name__}: {error})") from error


class _Instances:
    """Makes values for one schema.

    Each value is made up from the schema's keywords flattened into one mapping, and then checked against the schema
    itself: what makes values may be simple, since what doesn't fit is made again.
    """

    def __init__(self, root: Schema, rng: Random) -> None:
        self.root = root
        self.rng = rng
        self.made = 0
        self.heights: dict[str, float] = {}
        self._measure()

    def value(self, schema: Schema, path: str, depth: int) -> Any:
        """Returns a value. `path` says where in the schema, `depth` how many values and references it is in."""
        problem: ValueError | None = None
        for _ in range(_TRIES):
            flat, below, chose = self._flat(schema, path, depth)
            try:
                made = self._made(flat, path, below)
            except _SpentError as error:
                problem = problem or error
                break
            except ValueError as error:
                problem = error
                if not chose:
                    break
                continue
            if self.fits(made, schema):
                return made
        offered = (*schema.get("examples", ()), schema.get("default")) if isinstance(schema, Mapping) else ()
        for one in offered:
            if one is not None and self.fits(one, schema):
                return copy.deepcopy(one)
        raise problem or ValueError(f"{path}: found no value that satisfies all of {_names(schema)}")

    def _made(self, flat: dict[str, Any], path: str, depth: int) -> Any:
        self.made += 1
        if self.made > _MOST_VALUES:
            raise _SpentError(f"{path}: more than {_MOST_VALUES} values")
        if "const" in flat:
            return copy.deepcopy(flat["const"])
        if "enum" in flat:
            return copy.deepcopy(_chosen(flat["enum"], self.rng, f"{path}: no value is left of enum"))
        height = self._height(flat)
        if depth >= _DEEP and height == math.inf:
            raise ValueError(f"{path}: its required parts never end")
        kinds = _kinds(flat)
        if depth >= _DEEP:
            kinds = [min(kinds, key=lambda kind: self._height_of(kind, flat))] if kinds else kinds
        kind = _chosen(kinds, self.rng, f"{path}: no type is left")
        if kind not in _MAKERS:
            raise ValueError(f"{path}: got type {kind!r}, expected one of {sorted(_MAKERS)}")
        return _MAKERS[kind](self, flat, path, depth)

    # --- one flat mapping of keywords

    def resolve(self, reference: str, path: str = "$") -> Schema:
        """Returns what a reference points to, by RFC 6901.

        Raises:
            ValueError: It points out of the schema, or to nothing.
        """
        place: Any = self.root
        try:
            root, *parts = urllib.parse.unquote(reference).split("/")
            if root != "#":
                raise KeyError(root)
            for part in parts:
                name = part.replace("~1", "/").replace("~0", "~")
                place = place[int(name)] if isinstance(place, list) else place[name]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: $ref {reference!r} points to nothing in this schema") from error
        if not isinstance(place, (Mapping, bool)):
            raise ValueError(f"{path}: $ref {reference!r} points to a {type(place).__name__}, expected a schema")
        return cast("Schema", place)

    def _flat(self, schema: Schema, path: str, depth: int) -> tuple[dict[str, Any], int, bool]:
        """Follows references and makes choices until keywords remain; returns them, the depth, and if there was one."""
        flat: dict[str, Any] = {}
        waiting: list[Schema] = [schema]
        chose = False
        while waiting:
            one = waiting.pop(0)
            if isinstance(one, bool):
                flat = flat if one else {**flat, "enum": []}
                continue
            keywords = dict(one)
            waiting.extend(keywords.pop("allOf", ()))
            if "$ref" in keywords:
                depth += 1
                if depth > 100 + len(self.heights):
                    raise ValueError(f"{path}: its references never end")
                waiting.append(self.resolve(keywords.pop("$ref"), path))
            for choice in ("anyOf", "oneOf"):
                if choice in keywords:
                    chose = True
                    waiting.append(self._branch(keywords.pop(choice), path, depth))
            flat = _merged(flat, keywords)
        return flat, depth, chose

    def _branch(self, branches: Sequence[Schema], path: str, depth: int) -> Schema:
        ending = [branch for branch in branches if self._height(branch) < math.inf]
        if depth >= _DEEP and ending:
            return min(ending, key=self._height)
        return _chosen(ending or branches, self.rng, f"{path}: nothing to choose from")

    # --- how deep a value must be at least; infinity where it would never end

    def _measure(self) -> None:
        """Finds the height of what every reference points to: infinite at first, then lower until none gets lower."""
        self.heights = dict.fromkeys(_references(self.root), math.inf)
        lower = True
        while lower:
            lower = False
            for reference, height in self.heights.items():
                try:
                    found = self._height(self.resolve(reference))
                except ValueError:
                    continue
                if found < height:
                    self.heights[reference] = found
                    lower = True

    def _height(self, schema: Schema) -> float:
        if isinstance(schema, bool):
            return 0 if schema else math.inf
        if "const" in schema or "enum" in schema:
            return 0
        heights = [min((self._height_of(kind, schema) for kind in _kinds(schema)), default=0)]
        heights.extend(map(self._height, schema.get("allOf", ())))
        if "$ref" in schema:
            heights.append(1 + self.heights.get(schema["$ref"], math.inf))
        heights.extend(
            min(map(self._height, schema[choice]), default=math.inf)
            for choice in ("anyOf", "oneOf")
            if choice in schema
        )
        return max(heights)

    def _height_of(self, kind: str, schema: Mapping[str, Any]) -> float:
        if kind == "object":
            known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            parts = [known.get(name, others) for name in schema.get("required", ())]
        elif kind == "array":
            first, others = _items(schema)
            parts = [*first, others][: schema.get("minItems", 0)]
        else:
            return 0
        return max((1 + self._height(part) for part in parts), default=0)

    # --- values by type

    def object(self, flat: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        """Makes an object: what is required, most of what is optional, entries of a mapping."""
        known: Mapping[str, Schema] = flat.get("properties", {})
        others: Schema = flat.get("additionalProperties", True)
        required = list(dict.fromkeys(flat.get("required", ())))
        fewest, most = flat.get("minProperties", 0), flat.get("maxProperties", math.inf)
        optional = [name for name in known if name not in required and self._height(known[name]) < math.inf]
        self.rng.shuffle(optional)
        wanted = sum(self.rng.random() < self._eagerness(depth) for _ in optional)
        room = max(min(most - len(required), max(wanted, fewest - len(required))), 0)
        taken = {*required, *itertools.islice(optional, int(room))}
        made = {
            name: self.value(known.get(name, others), f"{path}.properties.{name}", depth + 1)
            for name in (*(name for name in known if name in taken), *(name for name in required if name not in known))
        }
        if others is not False:
            typed = isinstance(others, Mapping) and bool(others) and not known and self._height(others) < math.inf
            entries = self.rng.randint(1, 3) if typed and depth < _DEEP else 0
            self._add_entries(made, flat, path, depth, min(most, max(fewest, len(made) + entries)))
        return made

    def _add_entries(self, made: dict[str, Any], flat: dict[str, Any], path: str, depth: int, until: float) -> None:
        """Adds entries of names that the schema does not know, until there are so many."""
        names = flat.get("propertyNames", True)
        for _ in range(_TRIES + 4 * int(min(until, _MOST_VALUES))):
            if len(made) >= until:
                break
            name = self._name() if names is True else self.value(names, f"{path}.propertyNames", depth)
            if isinstance(name, str) and name not in made and name not in flat.get("properties", {}):
                others = flat.get("additionalProperties", True)
                made[name] = self.value(others, f"{path}.additionalProperties", depth + 1)

    def _name(self) -> str:
        words = _words(self.rng.randrange(len(_TOPICS)))
        return f"{self.rng.choice(words['quality'])}_{self.rng.choice(words['thing'])}"

    def _eagerness(self, depth: int) -> float:
        """How likely what is optional comes: less and less with the depth, so that trees end."""
        return 0.9 * (1 - depth / _DEEP) if depth < _DEEP else 0

    def array(self, flat: dict[str, Any], path: str, depth: int) -> list[Any]:
        """Makes an array of a few items."""
        first, others = _items(flat)
        fewest, most = flat.get("minItems", 0), flat.get("maxItems", math.inf)
        if others is False:
            most = min(most, len(first))
        usual = fewest
        if depth < _DEEP and all(self._height(one) < math.inf for one in first):
            more = self.rng.randint(1, 1 + math.ceil(2 * self._eagerness(depth)))
            usual = max(fewest, len(first) + (more if not first and self._height(others) < math.inf else 0))
        made: list[Any] = []
        for place in range(int(min(most, usual))):
            part, where = (first[place], f"prefixItems[{place}]") if place < len(first) else (others, "items")
            one = self.value(part, f"{path}.{where}", depth + 1)
            if flat.get("uniqueItems"):
                one = self._another(one, made, part, f"{path}.{where}", depth + 1)
                if any(_same(one, other) for other in made):
                    break  # fewer, then: enough or not, the check tells
            made.append(one)
        return made

    def _another(self, one: Any, made: list[Any], part: Schema, path: str, depth: int) -> Any:
        """Returns one that is not there yet, if there is such."""
        for _ in range(_TRIES):
            if not any(_same(one, other) for other in made):
                break
            one = self.value(part, path, depth)
        return one

    def string(self, flat: dict[str, Any], path: str, _: int) -> str:
        """Makes a text: of a pattern, of a format, or a few words."""
        shortest, longest = flat.get("minLength", 0), flat.get("maxLength", math.inf)
        if shortest > min(longest, 1_000_000):
            raise ValueError(f"{path}: got minLength {shortest}, expected at most {min(longest, 1_000_000)}")
        if "pattern" in flat:
            try:
                return _matching(flat["pattern"], self.rng, lambda text: shortest <= len(text) <= longest)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if flat.get("format") in _FORMATS:
            return _FORMATS[flat["format"]](self.rng)
        text = _phrase(self.rng, self.rng.randint(1, 4))
        if flat.get("contentEncoding") == "base64":
            return base64.b64encode(text.encode()).decode()
        while len(text) < shortest:
            text += " " + _phrase(self.rng, 1 + (shortest - len(text)) // 8)
        return text if len(text) <= longest else text[: int(longest)].rstrip().ljust(int(min(longest, shortest)), "s")

    def integer(self, flat: dict[str, Any], path: str, _: int) -> int:
        """Makes a whole number, within 0 to 100 where nothing is said."""
        step = Fraction(_step(flat, path, Fraction(1)).numerator)
        made = _multiple(flat, self.rng, step)
        if made is None:
            raise ValueError(f"{path}: no whole number is left between its limits")
        return int(made)

    def number(self, flat: dict[str, Any], path: str, _: int) -> float:
        """Makes a number, of two decimals where nothing else is said and the limits leave one."""
        made = _multiple(flat, self.rng, _step(flat, path, Fraction(1, 100)))
        if made is None and "multipleOf" not in flat:
            low, high = _limits(flat, Fraction(1))
            made = low[0] + (high[0] - low[0]) * Fraction(self.rng.random()) if low[0] <= high[0] else None
        if made is None:
            raise ValueError(f"{path}: no number is left between its limits")
        return float(made)

    # --- what fits

    def fits(self, value: Any, schema: Schema) -> bool:
        """Whether the schema, as far as its keywords are known here, allows a value."""
        if isinstance(schema, bool):
            return schema
        return all(check(self, value, schema) for keyword, check in _CHECKS.items() if keyword in schema) and all(
            check(value, schema[keyword])
            for keyword, (kinds, check) in _LIMITS.items()
            if keyword in schema and isinstance(value, kinds) and not isinstance(value, bool)
        )

    def fits_object(self, value: Any, schema: Mapping[str, Any]) -> bool:
        """Whether the parts of an object fit; anything else does."""
        if not isinstance(value, Mapping):
            return True
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if "patternProperties" in schema:  # not followed: what they say of other names isn't known
            others = True
        names = schema.get("propertyNames", True)
        return all(self.fits(part, known.get(name, others)) and self.fits(name, names) for name, part in value.items())

    def fits_array(self, value: Any, schema: Mapping[str, Any]) -> bool:
        """Whether the parts of an array fit; anything else does."""
        if not isinstance(value, list):
            return True
        first, others = _items(schema)
        return all(map(self.fits, value, itertools.chain(first, itertools.repeat(others))))


def _digits(rng: Random, digits: int) -> str:
    return "".join(rng.choices("0123456789abcdef", k=digits))


def _date(rng: Random) -> str:
    return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _time(rng: Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}Z"


def _uuid(rng: Random) -> str:
    return f"{_digits(rng, 8)}-{_digits(rng, 4)}-4{_digits(rng, 3)}-a{_digits(rng, 3)}-{_digits(rng, 12)}"


def _ipv4(rng: Random) -> str:
    return f"192.0.2.{rng.randint(1, 254)}"  # RFC 5737: for documentation


def _host(rng: Random) -> str:
    return f"{_phrase(rng, 1)}.example"  # RFC 2606: nobody's


_FORMATS: dict[str, Callable[[Random], str]] = {
    "date": _date,
    "time": _time,
    "date-time": lambda rng: f"{_date(rng)}T{_time(rng)}",
    "duration": lambda rng: f"PT{rng.randint(1, 90)}M",
    "email": lambda rng: f"{_phrase(rng, 1)}@{_host(rng)}",
    "hostname": _host,
    "uri": lambda rng: f"https://{_host(rng)}/{_phrase(rng, 1)}",
    **dict.fromkeys(("uuid", "uuid4"), _uuid),
    **dict.fromkeys(("ipv4", "ipvanyaddress"), _ipv4),
    "ipv6": lambda rng: f"2001:db8::{rng.randint(1, 0xFFFF):x}",
    "decimal": lambda rng: f"{rng.randint(0, 100)}.{rng.randint(0, 99):02}",
}


def _both(one: Any, other: Any) -> Any:
    return {"allOf": [one, other]}


def _both_each(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{name: _both(one[name], part) if name in one else part for name, part in other.items()}}


def _common(one: list[Any], other: list[Any]) -> list[Any]:
    return [value for value in one if any(_same(value, candidate) for candidate in other)]


_MERGE: dict[str, Callable[[Any, Any], Any]] = {
    "type": lambda one, other: _common_kinds({"type": one}, {"type": other}),
    "enum": _common,
    "required": operator.add,
    "properties": _both_each,
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), _both),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "uniqueItems": operator.or_,
}
"""What two schemas that both hold say together. Of what is not here one is taken, and the check has the last word."""


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**one, **other}
    for keyword in one.keys() & other.keys() & _MERGE.keys():
        if one[keyword] != other[keyword]:
            merged[keyword] = _MERGE[keyword](one[keyword], other[keyword])
    if "enum" in merged and "type" in merged:
        merged["enum"] = [one for one in merged["enum"] if any(_IS[kind](one) for kind in _kinds(merged))]
    return merged


def _common_kinds(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """An integer is a number, too."""
    left, right = set(_kinds(one)), set(_kinds(other))
    return sorted((left & right) | ({"integer"} if "integer" in left | right and "number" in left ^ right else set()))


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types a value may be of: those the schema names, or the one its keywords are about, or text."""
    kinds = schema.get("type")
    if kinds is None:
        return [next((_OF_KIND[keyword] for keyword in schema if keyword in _OF_KIND), "string")]
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _items(schema: Mapping[str, Any]) -> tuple[Sequence[Schema], Schema]:
    """The schemas of the first items one by one, and of all others."""
    items = schema.get("items", True)
    if isinstance(items, list):  # as before draft 2020-12
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", ()), items


def _references(place: Any) -> Iterator[str]:
    if isinstance(place, Mapping):
        if isinstance(place.get("$ref"), str):
            yield place["$ref"]
        place = list(place.values())
    if isinstance(place, list):
        for part in place:
            yield from _references(part)


def _names(schema: Schema) -> str:
    return ", ".join(schema) if isinstance(schema, Mapping) else "`false`"


def _chosen(choices: Sequence[T], rng: Random, problem: str) -> T:
    if not choices:
        raise ValueError(problem)
    return rng.choice(choices)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, but not true."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(part, other[name]) for name, part in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _all_differ(values: list[Any]) -> bool:
    return not any(_same(one, other) for one, other in itertools.combinations(values, 2))


def _is_multiple(value: float, step: float) -> bool:
    """By exact arithmetic and by that of floats, which validators use: 0.3 is no multiple of 0.1 to them."""
    exact = (Fraction(str(value)) / Fraction(str(step))).denominator == 1
    return exact and (isinstance(step, int) or float(value / step).is_integer())


def _step(flat: dict[str, Any], path: str, usual: Fraction) -> Fraction:
    step = Fraction(str(flat["multipleOf"])) if "multipleOf" in flat else usual
    if step <= 0:
        raise ValueError(f"{path}: got multipleOf {step}, expected a number above 0")
    return step


def _limits(flat: dict[str, Any], step: Fraction) -> tuple[tuple[Fraction, bool], tuple[Fraction, bool]]:
    """Returns the lowest and the highest, each with whether it is itself out; 0 to 100 or so where nothing is said."""

    def those(inclusive: str, exclusive: str) -> list[tuple[Fraction, bool]]:
        given = ((flat.get(inclusive), False), (flat.get(exclusive), True))
        return [(Fraction(str(limit)), out) for limit, out in given if _is_number(limit)]

    wide = max(Fraction(100), 10 * step)
    low = max(those("minimum", "exclusiveMinimum"), default=None)
    high = min(those("maximum", "exclusiveMaximum"), key=lambda limit: (limit[0], not limit[1]), default=None)
    if low is None:
        low = (Fraction(0) if high is None or high[0] > 0 else high[0] - wide, False)
    return low, high or (low[0] + wide, False)


def _multiple(flat: dict[str, Any], rng: Random, step: Fraction) -> Fraction | None:
    (low, without_low), (high, without_high) = _limits(flat, step)
    first = math.floor(low / step) + 1 if without_low else math.ceil(low / step)
    last = math.ceil(high / step) - 1 if without_high else math.floor(high / step)
    return step * rng.randint(first, last) if first <= last else None


_MAKERS: dict[str, Callable[[_Instances, dict[str, Any], str, int], Any]] = {
    "object": _Instances.object,
    "array": _Instances.array,
    "string": _Instances.string,
    "integer": _Instances.integer,
    "number": _Instances.number,
    "boolean": lambda made, *_: made.rng.random() < 0.5,
    "null": lambda *_: None,
}
_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_OF_KIND = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "propertyNames", "minProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
"""What is meant by a schema without a type. By the letter it allows all others too."""

_CHECKS: dict[str, Callable[[_Instances, Any, Mapping[str, Any]], bool]] = {
    "type": lambda _, value, schema: any(_IS[kind](value) for kind in _kinds(schema)),
    "const": lambda _, value, schema: _same(value, schema["const"]),
    "enum": lambda _, value, schema: any(_same(value, one) for one in schema["enum"]),
    "$ref": lambda made, value, schema: made.fits(value, made.resolve(schema["$ref"])),
    "allOf": lambda made, value, schema: all(made.fits(value, one) for one in schema["allOf"]),
    "anyOf": lambda made, value, schema: any(made.fits(value, one) for one in schema["anyOf"]),
    "oneOf": lambda made, value, schema: sum(made.fits(value, one) for one in schema["oneOf"]) == 1,
    "not": lambda made, value, schema: not made.fits(value, schema["not"]),
    "properties": _Instances.fits_object,
    "additionalProperties": _Instances.fits_object,
    "propertyNames": _Instances.fits_object,
    "items": _Instances.fits_array,
    "prefixItems": _Instances.fits_array,
}
_LIMITS: dict[str, tuple[tuple[type, ...], Callable[[Any, Any], bool]]] = {
    "minimum": ((int, float), operator.ge),
    "maximum": ((int, float), operator.le),
    # draft 4's, which OpenAPI 3.0 still has, is a bool
    "exclusiveMinimum": ((int, float), lambda value, limit: isinstance(limit, bool) or value > limit),
    "exclusiveMaximum": ((int, float), lambda value, limit: isinstance(limit, bool) or value < limit),
    "multipleOf": ((int, float), _is_multiple),
    "minLength": ((str,), lambda value, limit: len(value) >= limit),
    "maxLength": ((str,), lambda value, limit: len(value) <= limit),
    "pattern": ((str,), lambda value, pattern: _compiled(pattern).search(value) is not None),
    "minItems": ((list,), lambda value, limit: len(value) >= limit),
    "maxItems": ((list,), lambda value, limit: len(value) <= limit),
    "uniqueItems": ((list,), lambda value, unique: not unique or _all_differ(value)),
    "required": ((Mapping,), lambda value, names: all(name in value for name in names)),
    "minProperties": ((Mapping,), lambda value, limit: len(value) >= limit),
    "maxProperties": ((Mapping,), lambda value, limit: len(value) <= limit),
}


# --- Tool calls -------------------------------------------------------------------------------------------------------


def tool_arguments(parameters: Mapping[str, Any] | None, rng: Random) -> str:
    """Returns the arguments of a tool call: the JSON text of an object that the tool's parameters allow.

    Args:
        parameters: The tool's JSON Schema; None or an empty one says that it takes none.
        rng: Where chance comes from.

    Raises:
        ValueError: As `instance_of`; also of parameters that are no object.
        ModuleNotFoundError: As `instance_of`.
    """
    if not parameters:
        return "{}"
    arguments = instance_of({"type": "object", **parameters}, rng)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"$: got parameters of type {parameters.get('type')!r}, expected 'object'")
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def argument_pieces(arguments: str, rng: Random) -> list[str]:
    """Cuts arguments into pieces of 1 to 8 characters, as a stream sends them; none for an empty text."""
    pieces, start = [], 0
    while start < len(arguments):
        pieces.append(arguments[start : (start := start + rng.randint(1, 8))])
    return pieces
