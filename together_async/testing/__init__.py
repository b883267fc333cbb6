"""Test an app that uses chat completions against a server on a real socket, which answers or fails by a script.

    async with EmulatorServer("Hello there!", faults=Stall(after_token=1)) as server:
        ...  # your app, with base_url=server.base_url

It needs no key, and nothing leaves the machine. Installing the package gives pytest the fixtures `together_server` and
`together_client`; `together-async serve` runs the same server for other processes.
"""

from together_async.testing.account import Account
from together_async.testing.dialect import (
    DEEPSEEK,
    DIALECTS,
    GPT_OSS,
    LLAMA_CPP,
    OPENAI,
    TOGETHER,
    TRANSFORMERS,
    VLLM,
    Dialect,
)
from together_async.testing.fault import Fault
from together_async.testing.faults import (
    CloseAfter,
    Cut,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    LineEndings,
    Raw,
    Redirect,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)
from together_async.testing.journal import Entry, Journal
from together_async.testing.models import MODELS, Model
from together_async.testing.rates import Dynamic, Rate
from together_async.testing.recorder import Recorder
from together_async.testing.recording import Recording
from together_async.testing.rules import ByModel, Chance, InTurn, OneOf
from together_async.testing.script import FunctionCall, Reply
from together_async.testing.server import EmulatorServer

Call = FunctionCall
"""The short name for scripts: `Reply(tool_calls=[Call("f", {})])`."""

__all__ = [
    "DEEPSEEK",
    "DIALECTS",
    "GPT_OSS",
    "LLAMA_CPP",
    "MODELS",
    "OPENAI",
    "TOGETHER",
    "TRANSFORMERS",
    "VLLM",
    "Account",
    "ByModel",
    "Call",
    "Chance",
    "CloseAfter",
    "Cut",
    "Dialect",
    "Drip",
    "Dynamic",
    "EmulatorServer",
    "EndlessHeaders",
    "Entry",
    "ErrorInStream",
    "Fault",
    "Frame",
    "FunctionCall",
    "Garbage",
    "Gzip",
    "Headers",
    "HugeLine",
    "InTurn",
    "Insert",
    "Journal",
    "LineEndings",
    "Model",
    "OneOf",
    "Rate",
    "Raw",
    "Recorder",
    "Recording",
    "Redirect",
    "Reply",
    "Split",
    "Stall",
    "Status",
    "WithoutDone",
    "WithoutFinishReason",
    "WrongLength",
]
