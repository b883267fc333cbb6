"""The options of `python -m benchmarks faults`."""

import argparse
from pathlib import Path

from benchmarks.harness import options

CLIENTS = ("ours", "openai", "openai+aiohttp", "together", "together+aiohttp", "litellm")


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands, "faults", "what clients make of broken responses", start, parts={}, time="About 5 minutes."
    )
    parser.add_argument(
        "--clients", default="", help=f"separated by commas, of: {', '.join(CLIENTS)}; default: those without aiohttp"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this; default: all")
    parser.add_argument("--seed", type=int, default=1, help="decides the order of the cases (default 1)")
    parser.add_argument("--out", type=Path, help="folder for faults.json, which lists what each client got wrong")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.clients, CLIENTS)
    from benchmarks.faults import run

    return run.run(options.names(args.clients), args.only, args.seed, args.out)
