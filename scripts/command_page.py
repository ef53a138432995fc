"""docs/cli.md: every command with its arguments and options, out of the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from cluster.cli.exit_codes import ExitCode
from cluster.cli.main import app

_MEANINGS = {
    ExitCode.OK: "done; of a job that was waited for: it SUCCEEDED",
    ExitCode.ERROR: "error; it is said on stderr as `error: [REASON] words`",
    ExitCode.USAGE: "the command line, the job file or the request is wrong",
    ExitCode.JOB_FAILED: "the job FAILED",
    ExitCode.NOT_FINISHED: "not finished yet",
    ExitCode.NOT_FOUND: "there is no such thing",
    ExitCode.CANCELLED: "the job was CANCELLED",
    ExitCode.AUTH: "no token, or one that does not allow it",
    ExitCode.UNAVAILABLE: "the control plane cannot be reached, or does not answer",
    ExitCode.TIMEOUT: "`--timeout` passed first; the job goes on",
    ExitCode.INTERRUPTED: "Ctrl-C; only the following ended, the job goes on",
}
_HEAD = """\
<!-- generated from the commands by `make docs`; do not edit -->
# The command

`athanor <noun> <verb>`. Data goes to stdout, talk to stderr.

- `-o table|wide|json|yaml|name` is the form of the data. JSON is that of the contract's messages, one document; what is
  followed (`-w`, `watch`, `-f`) is a line of JSON for each change.
- `-w` on lists: on a terminal the table renews itself, elsewhere each line is printed as it becomes another one.
- A job is named by its uid, or by its name for the newest one of that name.
- Colours are for terminals; none with `NO_COLOR`. Bars become plain lines where stderr is no terminal.
- `athanor --install-completion` lets the shell complete commands, jobs, models and states with the Tab key.

## Exit codes

| code | meaning |
|---|---|
"""


def command_page() -> str:
    """The whole page."""
    codes = "".join(f"| {code.value} | {_MEANINGS[code]} |\n" for code in ExitCode)
    sections = "\n".join(_section(path, command) for path, command in _commands(typer.main.get_command(app), ()))
    return f"{_HEAD}{codes}\n{sections}"


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every group and command below this one, in their order."""
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name), inner
        yield from _commands(inner, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> str:
    words = " ".join((command.help or "").split())
    name = " ".join(("athanor", *path))
    if hasattr(command, "commands"):
        return f"## {name}\n\n{words}\n"
    arguments = [_value(each) for each in command.params if each.param_type_name == "argument"]
    rows = [_row(each) for each in command.params]
    table = "".join(["\n| | |\n|---|---|\n", *rows]) if rows else ""
    return f"{'##' if len(path) == 1 else '###'} `{' '.join([name, *arguments])}`\n\n{words}\n{table}"


def _row(param: Any) -> str:
    """How it is written, what it is, and its default; not as `--help` has it, whose form is the library's affair."""
    words = " ".join((param.help or "").split())
    default = getattr(param.default, "value", param.default)
    if param.param_type_name == "option" and param.required:
        words += " (required)"
    elif isinstance(default, str | int | float) and not isinstance(default, bool) and default not in ("", 0):
        words += f" (default {default})"
    written, words = (part.replace("|", "\\|") for part in (_written(param), words))
    return f"| `{written}` | {words} |\n"


def _written(param: Any) -> str:
    if param.param_type_name == "argument":
        return _value(param)
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {_value(param)}"


def _value(param: Any) -> str:
    name = str(param.metavar or param.opts[-1].lstrip("-").replace("-", "_").upper())
    if param.param_type_name == "argument":
        name += "" if param.nargs == 1 else "..."
        return name if param.required else f"[{name}]"
    return name
