"""The verdict on what a client made of a fault case. Pure.

right          what the case asks for (see `case`)
silent         the loop ended as if all were well although the answer was not whole, or it handed out text that the
               model had not produced; `deceived` are those where even the finish reason shows nothing
foreign        an exception outside the client's own tree: `except openai.OpenAIError` does not catch it. An
               AttributeError in the documented loop, caused by what the client handed out, counts as one
hang           no end before the deadline, with a timeout far below it
wrong error    an error status was reported as something else; of this library also: another class than it promises,
               or a `.partial` that is not what had been delivered
false alarm    an error although the answer was complete
"""

from dataclasses import dataclass
from typing import Any

from benchmarks.faults.case import COMPLETE, ERROR, Case

VERDICTS = ("right", "silent", "foreign", "hang", "wrong error", "false alarm")
REASONS = ("stop", "length", "tool_calls")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case with one client. `deceived`: silent, and the finish reason looked complete too."""

    verdict: str
    why: str = ""
    deceived: bool = False


def judge(case: Case, seen: dict[str, Any], *, exact: bool = False) -> Verdict:
    """Returns the verdict on what a client made of a case.

    Args:
        case: The case.
        seen: What `observe` recorded.
        exact: Whether to ask for the class that this library promises, and for the right `.partial`.
    """
    if seen["hang"]:
        return Verdict("hang", f"no end after {seen['took_s']:.1f} s")
    wrong_text = _wrong_text(case, seen)
    if seen["error"] is None:
        if case.right == ERROR:
            # Nothing was raised, so to the app this answer is finished. Whether the finish reason would have shown the
            # loss is counted separately and is no excuse: no client's documentation asks the app to look at it.
            return Verdict("silent", f"no error; {wrong_text or _how_far(case, seen)}", _all_finished(case, seen))
        lack = wrong_text or _lack(case, seen)
        if lack:
            return Verdict("silent", lack, _all_finished(case, seen))
        if exact and case.ours:
            return Verdict("wrong error", f"no error, expected {case.ours}")
        return Verdict("right")
    raised = f"{seen.get('module', '')}.{seen['error']}: {seen.get('message', '')}"
    if not seen["own"]:
        return Verdict("foreign", raised)
    if case.right == COMPLETE or (exact and not case.ours):
        return Verdict("false alarm", raised)
    if wrong_text:
        return Verdict("silent", f"{wrong_text}; then {raised}")
    if case.status and not _tells_status(case, seen):
        return Verdict("wrong error", f"{raised} with status {seen['status']}, expected {case.status}")
    if exact:
        return _exactly(case, seen, raised)
    return Verdict("right")


def _exactly(case: Case, seen: dict[str, Any], raised: str) -> Verdict:
    if seen["error"] not in case.ours.split("|"):
        return Verdict("wrong error", f"{raised}, expected {case.ours}")
    delivered = {index: choice["text"] for index, choice in seen["choices"].items()}
    partial = seen["partial"] if seen["partial"] is not None else delivered
    if _texts(partial) != _texts(delivered):
        return Verdict("wrong error", f"partial is {partial!r}, delivered was {delivered!r}")
    return Verdict("right")


def _texts(choices: dict[str, str]) -> dict[str, str]:
    return {index: text for index, text in choices.items() if text}


def _tells_status(case: Case, seen: dict[str, Any]) -> bool:
    # Where the body stalls, a client may also report a timeout, if it does so in time.
    return seen["status"] == case.status or ("stall" in case.name and "imeout" in seen["error"])


def _wrong_text(case: Case, seen: dict[str, Any]) -> str:
    """What is wrong with the text so far, which has to be a prefix of what the model said; empty if nothing."""
    truths = {str(index): truth for index, truth in enumerate(case.truth)}
    for index, choice in seen["choices"].items():
        if choice["text"] is None or choice["reasoning"] is None:
            return f"choice {index}: text that is not a str was handed out"
        truth = truths.get(index)
        if truth is None:
            if choice["text"]:
                return f"choice {index} does not exist and says {_short(choice['text'])}"
            continue
        if not any(text.startswith(choice["text"]) for text in (truth.text, case.other_text)):
            return f"choice {index}: text is {_short(choice['text'])}, the model said {_short(truth.text)}"
    return ""


def _lack(case: Case, seen: dict[str, Any]) -> str:
    """What a finished answer lacks; empty if nothing."""
    for index, truth in enumerate(case.truth):
        choice = seen["choices"].get(str(index))
        if choice is None:
            return f"choice {index} is missing"
        if choice["text"] not in (truth.text, case.other_text or truth.text):
            return f"choice {index}: text ends after {len(choice['text'])} of {len(truth.text)} characters"
        if choice["reasoning"] != truth.reasoning:
            return (
                f"choice {index}: reasoning is {_short(choice['reasoning'])}, the model said {_short(truth.reasoning)}"
            )
        if [tuple(call) for call in choice["calls"]] != list(truth.calls):
            return f"choice {index}: tool calls are {choice['calls']}, the model made {list(truth.calls)}"
        # Some clients translate reasons they do not know, but every client has to report one.
        if choice["reason"] != truth.reason and (choice["reason"] is None or truth.reason in REASONS):
            return f"choice {index}: finish reason is {choice['reason']!r}, the model's was {truth.reason!r}"
    return ""


def _how_far(case: Case, seen: dict[str, Any]) -> str:
    ends = (
        f"choice {index} ended after {len(seen['choices'].get(str(index), {}).get('text') or '')} of {len(truth.text)}"
        for index, truth in enumerate(case.truth)
    )
    return f"{', '.join(ends)} characters"


def _all_finished(case: Case, seen: dict[str, Any]) -> bool:
    found = seen["choices"]
    return all(found.get(str(index), {}).get("reason") in REASONS for index in range(len(case.truth)))


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"
