"""The options of `python -m benchmarks ratios`."""

import argparse

from benchmarks.harness import options

PARTS = {
    "blast": "CPU of a typed chunk, many events per read, 1 and 64 streams",
    "text": "the same for the texts of `text()`",
    "openai": "the same against openai",
    "kept": "chunks kept in a list: bytes, and the time of a full collection",
    "paced": "CPU of a chunk, one event per wake-up, 64 streams of 50 tokens/s",
    "first_byte": "from the call to the first byte at the server, back to back",
    "opening": "CPU of a stream of one token, back to back",
    "whole": "CPU of a whole call, 256 at once, on connections that are open",
    "objects": "objects of the garbage collector per open stream, and its pause",
    "capacity": "streams of 50 tokens/s that one core carries",
}


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "ratios",
        "cost in ratios to a loop by hand",
        start,
        parts=PARTS,
        time="Everything takes 45 minutes, of which capacity takes 30: 2 for each round.",
    )
    options.add_only(parser)
    options.add_rounds(parser, 15)
    options.add_quick(parser)
    options.add_out(parser, "ratios.json")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.only, PARTS)
    options.check_at_least_one(args.parser, "--rounds", args.rounds)
    from benchmarks.ratios import run

    only = options.names(args.only) or list(PARTS)
    return run.run(only, args.out, rounds=2 if args.quick else args.rounds, quick=args.quick)
