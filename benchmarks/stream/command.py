"""The options of `python -m benchmarks stream`."""

import argparse
import importlib.util
import sys

from benchmarks.clients import PEERS
from benchmarks.harness import options

LOOPS = ("asyncio", "uvloop")
PARTS = {
    "blast": "CPU per token, many events per read",
    "paced": "CPU per token, one event per wake-up",
    "first_byte": "from the call to the first byte at the server",
    "imports": "CPU seconds of the import",
    "scaling": "cost per token and per stream, from few to many",
    "slow": "memory under a reader that stops reading",
    "endurance": "leaks after 10,000 streams, a tenth of them broken",
    "hostile": "an endless line, gzip bombs",
    "memory": "memory per idle stream, plain and TLS",
    "capacity": "streams of 50 tokens/s that one core carries",
}


def add_to(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "stream",
        "cost per token, stream and call",
        start,
        parts=PARTS,
        time="Everything takes about 45 minutes, --quick about 10.",
    )
    options.add_only(parser)
    options.add_clients(parser, PEERS)
    parser.add_argument("--loops", default=",".join(LOOPS), help="event loops, separated by commas")
    options.add_rounds(parser, 5)
    options.add_quick(parser)
    parser.add_argument("--seed", type=int, default=1, help="decides which streams break in `endurance` (default 1)")
    options.add_out(parser, "JSON and the picture")


def start(args: argparse.Namespace) -> int:
    options.check_names(args.parser, args.only, PARTS)
    options.check_names(args.parser, args.loops, LOOPS)
    options.check_names(args.parser, args.clients, PEERS)
    from benchmarks.stream import run
    from benchmarks.stream.benchmark import StreamBenchmark

    benchmark = StreamBenchmark(
        rounds=2 if args.quick else args.rounds,
        quick=args.quick,
        loops=available(options.names(args.loops)),
        clients=options.names(args.clients),
        seed=args.seed,
    )
    return run.run(benchmark, options.names(args.only) or list(PARTS), args.out)


def available(loops: list[str]) -> list[str]:
    """The event loops that are installed: uvloop is optional, and doesn't exist for Windows."""
    if "uvloop" in loops and importlib.util.find_spec("uvloop") is None:
        print("left out: uvloop is not installed", file=sys.stderr)
        return [loop for loop in loops if loop != "uvloop"]
    return loops
