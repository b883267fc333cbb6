"""What can be run here.

`python -m benchmarks stream`: measure, print the table, write JSON and the picture.
`python -m benchmarks faults`: what this client and others make of what servers do wrong.
`python -m benchmarks soak`: thousands of streams, some of them broken, every outcome checked.
`python -m benchmarks limits`: thousands of calls under an account's limits, here and with other clients.
`python -m benchmarks fanout`: thousands of requests at once, here and with other clients.
`python -m benchmarks relay`: streams into browsers through a web backend, here and as others do it.
"""

import argparse
import contextlib
import importlib
import importlib.util
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from benchmarks import picture, report
from benchmarks.bench import LOOPS, Bench
from benchmarks.clients import PEERS

GROUPS = {
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
LIMITS_CLIENTS = ("ours", "openai", "together", "async-batch-llm", "lm-deluge")
LIMITS_PARTS = {
    "fixed": "an account whose limits stay as they are",
    "dynamic": "an account whose limits begin at a tenth, rise with use and fall on a 429",
    "down": "a platform that answers 503 to everything",
    "fairness": "a large request's wait among small ones",
    "cost": "an admission without contention",
}
FANOUT_CLIENTS = (
    "raw loop", "ours", "openai", "openai+aiohttp", "together", "together+aiohttp", "litellm", "async-batch-llm",
    "lm-deluge",
)  # fmt: skip
FANOUT_GROUPS = {
    "whole": "CPU of a whole response, and how near to the ideal, 256 at once",
    "stream": "the same of streams of 64 tokens",
    "connections": "whether 1,000 at once make a connection twice",
    "million": "memory of a map over 1,000,000 prompts",
    "resume": "how long a batch takes to go on, with 100,000 results",
    "journal": "what a durable batch costs beside a map",
}
RELAY_CLIENTS = (
    "sockets alone", "by hand", "ours", "ours text", "ours passthrough", "ours coalesce", "ours aiohttp.web",
    "openai+sse-starlette", "openai+sse-starlette text", "openai+sse-starlette break", "openai+StreamingResponse",
    "openai+fastapi.sse", "openai+aiohttp.web",
)  # fmt: skip
RELAY_PARTS = {
    "cpu": "CPU of a relayed token, as fast as it goes and paced",
    "streams": "relays of 50 tokens/s that one core carries",
    "memory": "memory under browsers that stop reading",
    "leaving": "from a browser's leaving to the API's being left",
}
FAULT_CLIENTS = ("ours", "openai", "openai+aiohttp", "together", "together+aiohttp", "litellm")
DEFAULT_FOLDER = Path(__file__).resolve().parent / "results"


def arguments() -> argparse.Namespace:
    groups = "\n".join(f"  {name:12}{what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(
        dest="what", required=True, metavar="stream | faults | soak | limits | fanout | relay"
    )
    commands.add_parser(
        "stream",
        parents=[stream_arguments()],
        help="cost per token, stream and call",
        description=f"Groups:\n{groups}\n\nEverything takes about 45 minutes, --quick about 10.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands.add_parser("faults", parents=[fault_arguments()], help="what clients make of what servers do wrong")
    commands.add_parser("soak", parents=[soak_arguments()], help="thousands of streams, some of them broken")
    parts = "\n".join(f"  {name:12}{what}" for name, what in LIMITS_PARTS.items())
    commands.add_parser(
        "limits",
        parents=[limits_arguments()],
        help="thousands of calls under an account's limits",
        description=f"Parts:\n{parts}\n\nEverything takes about 13 minutes, --quick less than 2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = "\n".join(f"  {name:12}{what}" for name, what in FANOUT_GROUPS.items())
    commands.add_parser(
        "fanout",
        parents=[fanout_arguments()],
        help="thousands of requests at once",
        description=f"Groups:\n{groups}\n\nEverything takes about 8 minutes, --quick about 2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = "\n".join(f"  {name:12}{what}" for name, what in RELAY_PARTS.items())
    commands.add_parser(
        "relay",
        parents=[relay_arguments()],
        help="streams into browsers",
        description=f"Parts:\n{parts}\n\nEverything takes about 11 minutes, --quick less than 3.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args = parser.parse_args()
    if args.what == "stream":
        check(parser, (args.only, GROUPS), (args.loops, LOOPS), (args.clients, PEERS))
    elif args.what == "faults":
        check(parser, (args.clients, FAULT_CLIENTS))
    elif args.what == "relay":
        check(parser, (args.clients, RELAY_CLIENTS), (args.only, RELAY_PARTS))
        if args.rounds < 1:
            parser.error(f"--rounds: got {args.rounds}, expected at least 1")
    elif args.what == "fanout":
        check(parser, (args.clients, FANOUT_CLIENTS), (args.only, FANOUT_GROUPS))
        if args.rounds < 1:
            parser.error(f"--rounds: got {args.rounds}, expected at least 1")
    elif args.what == "limits":
        check(parser, (args.clients, LIMITS_CLIENTS), (args.only, LIMITS_PARTS))
        check(parser, (",".join(name for name, _ in args.python), LIMITS_CLIENTS))
        if args.speed is None:
            args.speed = 30.0 if args.quick else 10.0
        if not args.speed >= 1:
            parser.error(f"--speed: got {args.speed:g}, expected at least 1")
    return args


def check(parser: argparse.ArgumentParser, *lists: tuple[str, Collection[str]]) -> None:
    """Refuses names in a list with commas that nobody knows."""
    for chosen, known in lists:
        for name in filter(None, chosen.split(",")):
            if name not in known:
                parser.error(f"unknown: {name!r}; known: {', '.join(known)}")


def fault_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--clients", default="", help=f"separated by commas, of: {', '.join(FAULT_CLIENTS)}")
    parser.add_argument("--only", default="", help="cases whose name holds this; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for faults.json, which lists what each client got wrong")
    return parser


def soak_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--faults", type=float, default=0.1, help="share of the streams that is broken (default 0.1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=64)
    return parser


def limits_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--clients", default="", help=f"separated by commas, of: {', '.join(LIMITS_CLIENTS)}")
    parser.add_argument("--only", default="", help="parts, separated by commas; default: all")
    parser.add_argument("--speed", type=float, help="how many times as fast the clocks run (default 10; 30 if --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer calls: to see whether it works, not to quote")
    parser.add_argument(
        "--python",
        nargs=2,
        action="append",
        default=[],
        metavar=("CLIENT", "PATH"),
        help="another interpreter for a client that cannot be installed beside the others",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder for limits.json and the picture")
    return parser


def fanout_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--clients", default="", help=f"separated by commas, of: {', '.join(FANOUT_CLIENTS)}")
    parser.add_argument("--only", default="", help="groups, separated by commas; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each client, alternated (default 5)")
    parser.add_argument("--quick", action="store_true", help="fewer requests: to see whether it works, not to quote")
    parser.add_argument("--out", "--output", type=Path, default=DEFAULT_FOLDER, help="folder for fanout.json")
    return parser


def relay_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--clients", default="", help=f"separated by commas, of: {', '.join(RELAY_CLIENTS)}")
    parser.add_argument("--only", default="", help="parts, separated by commas; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each backend, alternated (default 3)")
    parser.add_argument("--quick", action="store_true", help="fewer of everything: to see whether it works")
    parser.add_argument("--out", "--output", type=Path, default=DEFAULT_FOLDER, help="folder for relay.json")
    return parser


def stream_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", help="groups, separated by commas; default: all", default=",".join(GROUPS))
    parser.add_argument("--clients", help=f"clients, separated by commas, of: {', '.join(PEERS)}", default="")
    parser.add_argument("--loops", help="event loops, separated by commas", default=",".join(LOOPS))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each client, alternated (default 5)")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: to see whether it works, not to quote")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder for JSON and pictures")
    return parser


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.what == "soak":
        soak = importlib.import_module("benchmarks.soak")
        return int(soak.run(args.streams, args.faults, args.seed, at_once=args.at_once))
    if args.what == "limits":
        limits = importlib.import_module("benchmarks.limits")
        clients, only = ([name for name in given.split(",") if name] for given in (args.clients, args.only))
        speed, pythons = args.speed, dict(args.python)
        return int(limits.run(clients, only, args.out, speed=speed, quick=args.quick, pythons=pythons))
    if args.what == "fanout":
        fanout = importlib.import_module("benchmarks.fanout")
        clients, only = ([name for name in given.split(",") if name] for given in (args.clients, args.only))
        return int(fanout.run(clients, only, args.out, rounds=args.rounds, quick=args.quick))
    if args.what == "relay":
        relay = importlib.import_module("benchmarks.relay")
        clients, only = ([name for name in given.split(",") if name] for given in (args.clients, args.only))
        return int(relay.run(clients, only, args.out, rounds=args.rounds, quick=args.quick))
    if args.what == "faults":
        faults = importlib.import_module("benchmarks.faults")
        return int(faults.run(tuple(filter(None, args.clients.split(","))), args.only, args.seed, args.out))
    return stream(args)


def stream(args: argparse.Namespace) -> int:
    bench = Bench(
        rounds=2 if args.quick else args.rounds,
        quick=args.quick,
        loops=available(args.loops.split(",")),
        clients=tuple(filter(None, args.clients.split(","))),
        seed=args.seed,
    )
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # what has been measured by then is worth having
        for name in args.only.split(","):
            attempt_group(bench, name)
    report.show(bench.figures)
    for name, why in bench.left_out.items():
        print(f"left out: {name}: {why}")
    for failure in bench.failures:
        print(f"failed: {failure}")
    path = report.write(
        args.out,
        bench.figures,
        versions=bench.versions,
        left_out=bench.left_out,
        failures=bench.failures,
        seed=bench.seed,
        rounds=bench.rounds,
        quick=bench.quick,
        took_s=round(time.monotonic() - started),
    )
    print(", ".join(str(path) for path in [path, *picture.draw(args.out, bench.figures)]))
    missed = [figure for figure in bench.figures if figure.state == "missed"]
    print(f"{len(missed)} targets missed" if missed else "no target missed")
    return 0


def available(loops: list[str]) -> tuple[str, ...]:
    """Those that are installed; uvloop is optional, and Windows has none."""
    if "uvloop" in loops and importlib.util.find_spec("uvloop") is None:
        print("left out: uvloop is not installed", file=sys.stderr)
        loops = [loop for loop in loops if loop != "uvloop"]
    return tuple(loops)


def attempt_group(bench: Bench, name: str) -> None:
    """One group; when it fails as a whole (no trustme for TLS, no sockets left) the others still run."""
    try:
        importlib.import_module(f"benchmarks.groups.{name}").run(bench)
    except Exception as exc:
        bench.failures.append(f"{name}: {exc!r}")
        bench.say(f"  {bench.failures[-1]}")


if __name__ == "__main__":
    sys.exit(main())
