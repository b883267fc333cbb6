"""The options of `python -m benchmarks limits`."""

import argparse

from benchmarks.harness import options

CLIENTS = ("ours", "openai", "together", "async-batch-llm", "lm-deluge")
PARTS = {
    "fixed": "an account whose limits stay as they are",
    "dynamic": "an account whose limits begin at a tenth, rise with use and fall on a 429",
    "distance": "the fixed account over TLS, 20, 50 and 100 ms away",
    "whole5": "the dynamic account, with whole answers of 5 s",
    "silent": "accounts that tell nothing about their limits",
    "stray": "429s that have nothing to do with the account's limits",
    "down": "a platform that answers 503 to everything",
    "cold": "the first calls of a client, against none that limits itself",
    "models": "a thousand models with three calls each",
    "fairness": "a large request's wait among small ones",
    "cost": "an admission without contention",
}
SPEED, QUICK_SPEED = 10.0, 30.0
ROUNDS = 5
QUICK_JOBS = 3


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "limits",
        "thousands of calls under an account's limits",
        start,
        parts=PARTS,
        time="Everything takes about 2 hours, with --speed 4 --jobs 5 one, --quick less than 3 minutes.",
    )
    options.add_clients(parser, CLIENTS)
    options.add_only(parser)
    parser.add_argument(
        "--speed",
        type=float,
        help=f"how many times as fast the clocks run (default {SPEED:g}; {QUICK_SPEED:g} if --quick)",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"runs of each of our ways, with other calls (default {ROUNDS}; 1 if --quick)"
    )
    parser.add_argument("--jobs", type=int, help=f"runs under accounts at once (default 1; {QUICK_JOBS} if --quick)")
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
    rounds = (1 if args.quick else ROUNDS) if args.rounds is None else args.rounds
    jobs = (QUICK_JOBS if args.quick else 1) if args.jobs is None else args.jobs
    for option, value in (("--speed", speed), ("--rounds", rounds), ("--jobs", jobs)):
        options.check_at_least_one(args.parser, option, value)
    from benchmarks.limits import run

    return run.run(
        options.names(args.clients),
        options.names(args.only),
        args.out,
        speed=speed,
        quick=args.quick,
        rounds=rounds,
        jobs=jobs,
        pythons=dict(args.python),
    )
