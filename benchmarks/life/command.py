"""The options of `python -m benchmarks life`."""

import argparse

from benchmarks.harness import options


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "life",
        "a long life of a client: streams read and left in every way, garbage collected anywhere, and what is left",
        start,
        parts={},
        time="20 minutes, unless --minutes says otherwise.",
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long it takes (default 20)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop")
    parser.add_argument("--debug", action="store_true", help="asyncio's debug mode")
    parser.add_argument("--streams", type=int, default=150, help="streams at the same time (default 150)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two samples (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything but the timing (default 1)")
    parser.add_argument("--read", default="", help="ways of reading, separated by commas; default: all")
    parser.add_argument("--leave", default="", help="ways of leaving, separated by commas; default: all")


def start(args: argparse.Namespace) -> int:
    options.check_at_least_one(args.parser, "--streams", args.streams)
    from benchmarks.life import run
    from benchmarks.life.leavings import LEAVINGS
    from benchmarks.life.readings import READINGS

    options.check_names(args.parser, args.read, READINGS)
    options.check_names(args.parser, args.leave, LEAVINGS)
    return run.run(
        60 * args.minutes,
        loop=args.loop,
        debug=args.debug,
        streams=args.streams,
        every_s=args.every,
        seed=args.seed,
        readings=options.names(args.read) or list(READINGS),
        leavings=options.names(args.leave) or list(LEAVINGS),
    )
