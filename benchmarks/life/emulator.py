"""The emulator of a long life as its own process: a request's message says what it does (see `plan`)."""

from benchmarks.faults import emulator
from benchmarks.life.plan import account, faults, script
from together_async.testing import EmulatorServer

TOKENS_PER_SECOND = 40.0


def server_of(seed: int) -> EmulatorServer:
    return EmulatorServer(
        script,
        faults=faults,
        account=account(),
        tokens_per_second=TOKENS_PER_SECOND,
        first_token_s=0.03,
        jitter=0.5,
        seed=seed,
        journal_size=64,
    )


if __name__ == "__main__":
    emulator.main(server_of)
