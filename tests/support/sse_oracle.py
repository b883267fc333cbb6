"""The standard's algorithm for event streams (WHATWG HTML 9.2.6), written out slowly."""

from together_async.wire.sse import ServerSentEvent


def lines_of(text: str) -> list[str]:
    """The lines that end in CRLF, LF or CR; an unfinished line is left out."""
    lines, line, position = [], "", 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\r":
            if text[position : position + 1] == "\n":
                position += 1
            lines.append(line)
            line = ""
        elif character == "\n":
            lines.append(line)
            line = ""
        else:
            line += character
    return lines


def read_slowly(body: bytes) -> list[ServerSentEvent]:  # noqa: C901 - the standard has these cases
    """The events of a whole body, by the standard's algorithm.

    It decodes before it splits, as the standard does. The data of an event is compared as bytes, so undecodable ones
    pass through.
    """
    text = body.decode("utf-8", "surrogateescape")
    text = text.removeprefix("\ufeff")
    events = []
    data = event_type = last_id_buffer = ""
    retry = None
    for line in lines_of(text):
        if line == "":
            last_id = last_id_buffer
            if data == "":
                event_type = ""
                retry = None
                continue
            data = data.removesuffix("\n")
            events.append(
                ServerSentEvent(
                    data.encode("utf-8", "surrogateescape"),
                    event=shown(event_type or "message"),
                    id=shown(last_id),
                    retry=retry,
                )
            )
            data = event_type = ""
            retry = None
            continue
        if line.startswith(":"):
            continue
        if ":" in line:
            field, value = line[: line.index(":")], line[line.index(":") + 1 :]
            value = value.removeprefix(" ")
        else:
            field, value = line, ""
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id":
            if "\0" not in value:
                last_id_buffer = value
        elif field == "retry" and value != "" and all(character in "0123456789" for character in value):
            retry = int(value)
    return events


def shown(text: str) -> str:
    """Decodes UTF-8, with replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
