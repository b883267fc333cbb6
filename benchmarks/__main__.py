"""`python -m benchmarks NAME`: each package with a `command` is a benchmark; README.md says what they measure."""

import argparse
import signal
import sys

from benchmarks.fanout import command as fanout
from benchmarks.faults import command as faults
from benchmarks.life import command as life
from benchmarks.limits import command as limits
from benchmarks.ratios import command as ratios
from benchmarks.relay import command as relay
from benchmarks.soak import command as soak
from benchmarks.stream import command as stream


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(
        required=True, metavar="stream | ratios | faults | soak | life | limits | fanout | relay"
    )
    for command in (stream, ratios, faults, soak, life, limits, fanout, relay):
        command.add_to(commands)
    return parser


def main() -> int:
    args = make_parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return int(args.start(args))


if __name__ == "__main__":
    sys.exit(main())
