"""Command-line options that several benchmarks share, and the check of their values."""

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; the class is private to argparse."""


def add_command(
    commands: Commands, name: str, summary: str, start: Callable[..., int], *, parts: Mapping[str, str], time: str
) -> argparse.ArgumentParser:
    """Adds `python -m benchmarks <name>`, whose help lists the parts and says how long they take.

    Args:
        commands: The subcommands so far.
        name: Of the command.
        summary: For the list of commands.
        start: Called with the parsed arguments and the parser; returns the exit status.
        parts: What `--only` selects from, with descriptions.
        time: How long the command takes.
    """
    lines = [f"  {part:12}{what}" for part, what in parts.items()]
    description = "\n".join([summary, *(["", "Parts:", *lines] if lines else []), "", time])
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(start=start, parser=parser)
    return parser


def add_clients(parser: argparse.ArgumentParser, known: Collection[str]) -> None:
    parser.add_argument("--clients", default="", help=f"separated by commas, of: {', '.join(known)}; default: all")


def add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="parts, separated by commas; default: all")


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", "--output", type=Path, default=RESULTS, help=f"folder for {what}")


def add_quick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="less of everything: to check that it works, not to quote")


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--rounds", type=int, default=default, help=f"measurements of each client (default {default})")


def names(listed: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in listed.split(",") if name]


def check_names(parser: argparse.ArgumentParser, listed: str, known: Collection[str]) -> None:
    """Ends the program if a list with commas has an unknown name."""
    for name in names(listed):
        if name not in known:
            parser.error(f"unknown: {name!r}; known: {', '.join(known)}")


def check_at_least_one(parser: argparse.ArgumentParser, option: str, value: float) -> None:
    if not value >= 1:
        parser.error(f"{option}: got {value:g}, expected at least 1")
