"""The options of `python -m benchmarks soak`."""

import argparse

from benchmarks.harness import options


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "soak",
        "a long run of streams, a tenth of them broken, with every outcome checked",
        start,
        parts={},
        time="About half a minute.",
    )
    parser.add_argument("--streams", type=int, default=10_000, help="number of streams (default 10,000)")
    parser.add_argument("--faults", type=float, default=0.1, help="share of the streams that is broken (default 0.1)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything but the interleaving (default 1)")
    parser.add_argument("--at-once", type=int, default=64, help="streams at the same time (default 64)")


def start(args: argparse.Namespace) -> int:
    from benchmarks.soak import run

    return run.run(args.streams, args.faults, args.seed, at_once=args.at_once)
