"""The command line ``widthwise``: finds the command, reads its options, says what went wrong in one line.

A command is a dataclass whose fields are the options, with a ``run(self) -> int`` that returns the exit
status. Its module imports nothing heavy; ``run`` imports what it needs. To add one, add a line to
`COMMANDS`.
"""

import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from widthwise.proxies.files import is_full
from widthwise.proxies.validation import ConfigError, RunError, first_line, nearest
from widthwise.transfer.endings import flush, full_disk, status_of
from widthwise.transfer.passwords import conceal_password

if TYPE_CHECKING:
    from tyro._errors import ParseErrorEvent

COMMANDS = {
    "demo": "demo.Demo",
    "sweep": "sweep.Sweep",
    "scale": "scale.Scale",
    "rules": "rules.Rules",
    "table": "table.Table",
    "check": "check.Check",
    "launch": "launch.Launch",
    "export": "export.Export",
    "jobs": "jobs.Jobs",
    "logs": "logs.Logs",
    "stop": "stop.Stop",
    "resume": "resume.Resume",
    "data": "data.Data",
    "doctor": "doctor.Doctor",
    "status": "status.Status",
    "report": "report.Report",
    "plot": "plot.Plot",
}
"""Command → ``module.Class`` below ``widthwise.transfer.commands``, in the order of the help."""

_MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


class Command(Protocol):
    """Options of a command, and what it does."""

    def run(self) -> int:
        """Do the work and return the exit status."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        argv: the arguments after the program's name; None takes the process's.

    Raises:
        SystemExit: 0 on success, 2 on a user's error, 1 on a failure of our own, 130 when interrupted,
            141 when the reader of standard output has gone.
    """
    for name in ("stdout", "stderr"):
        # Closed by whoever started the process: `print` would write to the other one.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Greek letters shows question marks, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if argv is None:
        conceal_password()
    given = sys.argv[1:] if argv is None else argv
    sys.exit(status_of(lambda: _carry_out(given)))


def _carry_out(argv: list[str]) -> int:
    """Run the command that `argv` names; where a disk is full, raise a RunError that says which."""
    command = None
    try:
        try:
            command = _command(argv)
            return command.run()
        finally:
            flush()
    except Exception as error:
        if not is_full(error):
            raise
        raise RunError(full_disk(command)) from error


def _command(argv: list[str]) -> Command:
    """Return the command that `argv` names, with its options; print help or version where asked, and exit."""
    if not argv:
        print(_help(), end="")
        sys.exit(2)
    name, *options = argv
    if name in ("-h", "--help"):
        print(_help(), end="")
        sys.exit(0)
    if name == "--version":
        print(f"widthwise {version('widthwise')}")
        sys.exit(0)
    known = list(COMMANDS)
    if name.startswith("-"):
        raise ConfigError(f"{name}: unknown option{nearest(name, ['--help', '--version'])}")
    if name not in COMMANDS:
        raise ConfigError(f"command: must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return _parse(name, _class(name), options)


def _class(name: str) -> Callable[..., Command]:
    module, _, cls = COMMANDS[name].partition(".")
    found: Callable[..., Command] = getattr(import_module(f"widthwise.transfer.commands.{module}"), cls)
    return found


def _help() -> str:
    """Return the program's help: the commands and their docstrings' first lines."""
    rows = {name: first_line(_class(name).__doc__ or "") for name in COMMANDS}
    indent = max(map(len, rows)) + 2
    listing = "\n".join(f"  {name:<{indent}}{summary}" for name, summary in rows.items())
    return (
        "usage: widthwise [-h] [--version] COMMAND ...\n\n"
        "Tune learning rate, weight decay and Huber coefficient on narrow proxies; train the wide model "
        f"zero-shot.\n\ncommands:\n{listing}\n\nwidthwise COMMAND --help says more.\n"
    )


def _parse(name: str, cls: Callable[..., Command], options: list[str]) -> Command:
    """Read a command's options with tyro, its complaints in one line.

    The structured hook for tyro's errors is private to it: without it, the box that tyro draws is
    caught and flattened.
    """
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught), _tyro_errors(lambda event: _complain(event, cls)):
            return tyro.cli(cls, prog=f"widthwise {name}", args=options, config=_MARKERS, registry=_numbers())
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(re.sub("[─│╭╮╰╯]", " ", caught.getvalue())) from None


def _tyro_errors(hook: "Callable[[ParseErrorEvent], None]") -> contextlib.AbstractContextManager[None]:
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return contextlib.nullcontext()
    return on_parse_error(hook)


def _complain(event: "ParseErrorEvent", cls: Callable[..., Command]) -> None:
    """Raise one of tyro's parse errors as the line that we print; unknown ones are left to tyro's box."""
    unknown: list[str] = getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None) or []
    if unknown:
        raise ConfigError(_unknown(unknown[0], cls))
    missing: list[Any] = getattr(event, "missing_arguments", [])
    if missing:
        names = [one.arg.field.intern_name for one in missing]
        raise ConfigError("; ".join(f"{name}: is required" for name in names))
    argument = getattr(event, "argument", None)
    head = f"{argument.field.intern_name}: " if argument else ""
    choices = _choices(argument.field.type) if argument else []
    if choices and (hasattr(event, "value") or hasattr(event, "message")):
        # tyro itself takes "None" for a choice, and then cannot make it one.
        value = str(getattr(event, "value", "None"))
        raise ConfigError(
            f"{head}must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}"
        )
    if argument or hasattr(event, "message"):
        raise ConfigError(f"{head}{getattr(event, 'message', 'needs a value')}")


def _choices(hint: Any) -> list[str]:
    """Return the values of a Literal, or of one that may be None, in their order: tyro's own is a set's."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return [str(value) for value in inner]
    if {int, float} & set(inner):
        return []
    return [value for one in inner for value in _choices(one)]


def _unknown(token: str, cls: Any) -> str:
    if not token.startswith("-"):
        return f"{token}: unexpected argument"
    known = [f"--{one.name.replace('_', '-')}" for one in fields(cls)]
    return f"{token}: unknown option{nearest(token, known)}"


def _numbers() -> ConstructorRegistry:
    """Return tyro constructors for numbers that say the rule and the value, as our records do."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type in (int, int | None):
            return _number("INT", int, "a whole number")
        if info.type in (float, float | None):
            return _number("FLOAT", float, "a number")
        if info.type == float | Literal["auto"] | None:
            return _number("FLOAT|auto", float, "a number or auto", word="auto")
        return None

    return registry


def _number(
    metavar: str, convert: Callable[[str], float], described: str, *, word: str | None = None
) -> PrimitiveConstructorSpec[Any]:
    def read(args: list[str]) -> float | str:
        if args[0] == word:
            return word
        try:
            value = convert(args[0])
        except ValueError:
            raise ValueError(f"must be {described}, got {args[0]!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"must be finite, got {args[0]!r}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or value == word or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )
