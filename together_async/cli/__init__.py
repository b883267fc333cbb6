"""The command `together-async`. It needs the extra `cli`, of which nothing is imported before `main` runs."""

import sys

__all__ = ["main"]

INSTALL = "pip install 'together-async[cli]'"


def main() -> int:
    """Run the command with the process's arguments.

    Returns:
        The exit code: 0 done, 1 the API or the stream failed, 2 used wrongly, 130 interrupted.
    """
    try:
        return run()
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print(f"together-async: the command needs the package {error.name}: {INSTALL}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run() -> int:
    """Run click's command; return its exit code rather than end the process."""
    import click  # noqa: PLC0415 - an optional package

    from together_async.cli.app import app  # noqa: PLC0415 - imports click

    try:
        code = app.main(prog_name="together-async", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0
