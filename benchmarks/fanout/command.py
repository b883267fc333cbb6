"""The options of `python -m benchmarks fanout`."""

import argparse

from benchmarks.harness import options

CLIENTS = (
    "raw loop",
    "ours",
    "openai",
    "openai+aiohttp",
    "together",
    "together+aiohttp",
    "litellm",
    "async-batch-llm",
    "lm-deluge",
)
PARTS = {
    "whole": "CPU of a whole response, and how close to the ideal, 256 at once",
    "stream": "the same for streams of 64 tokens",
    "connections": "whether 1,000 at once make a connection twice",
    "million": "memory of a map over 1,000,000 prompts",
    "resume": "how long a batch with 100,000 results takes to resume",
    "journal": "what a durable batch costs compared with a map",
}


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "fanout",
        "thousands of requests at once",
        start,
        parts=PARTS,
        time="Everything takes about 8 minutes, --quick about 2.",
    )
    options.add_clients(parser, CLIENTS)
    options.add_only(parser)
    options.add_rounds(parser, 5)
    options.add_quick(parser)
    options.add_out(parser, "fanout.json")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.clients, CLIENTS)
    options.check_names(args.parser, args.only, PARTS)
    options.check_at_least_one(args.parser, "--rounds", args.rounds)
    from benchmarks.fanout import run

    clients, only = options.names(args.clients), options.names(args.only)
    return run.run(clients, only, args.out, rounds=args.rounds, quick=args.quick)
