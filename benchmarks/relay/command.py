"""The options of `python -m benchmarks relay`."""

import argparse

from benchmarks.harness import options

BACKENDS = (
    "sockets alone",
    "by hand",
    "ours",
    "ours text",
    "ours passthrough",
    "ours coalesce",
    "ours aiohttp.web",
    "openai+sse-starlette",
    "openai+sse-starlette text",
    "openai+sse-starlette break",
    "openai+StreamingResponse",
    "openai+fastapi.sse",
    "openai+aiohttp.web",
)
PARTS = {
    "cpu": "CPU of a relayed token, as fast as it goes and paced",
    "streams": "relays of 50 tokens/s that one core carries",
    "memory": "memory under browsers that stop reading",
    "leaving": "from a browser's leaving to the API's seeing it",
}


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "relay",
        "streams relayed to browsers",
        start,
        parts=PARTS,
        time="Everything takes 12 to 14 minutes, --quick less than 3.",
    )
    options.add_clients(parser, BACKENDS)
    options.add_only(parser)
    options.add_rounds(parser, 3)
    options.add_quick(parser)
    options.add_out(parser, "relay.json")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.clients, BACKENDS)
    options.check_names(args.parser, args.only, PARTS)
    options.check_at_least_one(args.parser, "--rounds", args.rounds)
    from benchmarks.relay import run

    clients, only = options.names(args.clients), options.names(args.only)
    return run.run(clients, only, args.out, rounds=args.rounds, quick=args.quick)
