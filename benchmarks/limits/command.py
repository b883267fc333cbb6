"""The options of `python -m benchmarks limits`."""

import argparse

from benchmarks.harness import options

CLIENTS = ("ours", "openai", "together", "async-batch-llm", "lm-deluge")
PARTS = {
    "fixed": "an account whose limits stay as they are",
    "dynamic": "an account whose limits begin at a tenth, rise with use and fall on a 429",
    "down": "a platform that answers 503 to everything",
    "fairness": "a large request's wait among small ones",
    "cost": "an admission without contention",
}
SPEED, QUICK_SPEED = 10.0, 30.0


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "limits",
        "thousands of calls under an account's limits",
        start,
        parts=PARTS,
        time="Everything takes about 13 minutes, --quick less than 2.",
    )
    options.add_clients(parser, CLIENTS)
    options.add_only(parser)
    parser.add_argument(
        "--speed",
        type=float,
        help=f"how many times as fast the clocks run (default {SPEED:g}; {QUICK_SPEED:g} if --quick)",
    )
    options.add_quick(parser)
    parser.add_argument(
        "--python",
        nargs=2,
        action="append",
        default=[],
        metavar=("CLIENT", "PATH"),
        help="another interpreter for a client that cannot be installed next to the others",
    )
    options.add_out(parser, "limits.json and the picture")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.clients, CLIENTS)
    options.check_names(args.parser, args.only, PARTS)
    options.check_names(args.parser, ",".join(name for name, _ in args.python), CLIENTS)
    speed = (QUICK_SPEED if args.quick else SPEED) if args.speed is None else args.speed
    options.check_at_least_one(args.parser, "--speed", speed)
    from benchmarks.limits import run

    clients, only = options.names(args.clients), options.names(args.only)
    return run.run(clients, only, args.out, speed=speed, quick=args.quick, pythons=dict(args.python))
