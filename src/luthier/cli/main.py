"""The command `luthier`: its list of commands, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from luthier import __version__
from luthier.cli import (
    convert,
    cut,
    evaluate,
    fit,
    instruments,
    meta,
    methods,
    mix,
    multilingual,
    predict,
    prompts,
    search,
    sites,
    slim,
    testbed,
    verbalise,
)
from luthier.cli import stream as streams
from luthier.errors import LuthierError

HELP = (
    "Adapt a pretrained model to a task by any published way, and find out which way is best for your data."
)

app = typer.Typer(
    help=HELP,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """What holds for every command; `main` reads --debug itself, because it handles the errors."""


app.command("fit")(fit.fit)
app.command("stream")(streams.stream)
app.command("search")(search.search)
app.command("meta")(meta.meta)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("mix")(mix.mix)
app.command("multilingual")(multilingual.multilingual)
app.command("verbalise")(verbalise.verbalise)
app.command("convert")(convert.convert)
app.command("cut")(cut.cut)
app.command("slim")(slim.slim)
app.command("methods")(methods.methods)
app.command("sites")(sites.sites)
app.add_typer(testbed.app, name="testbed")
app.add_typer(instruments.app, name="instruments")
app.add_typer(prompts.app, name="prompts")


def _add_rooms() -> None:
    """Commands whose modules belong to other rooms."""
    from importlib import import_module
    from importlib.util import find_spec

    for name in ("compare", "papers", "check", "bench"):
        if find_spec(f"luthier.cli.{name}"):
            app.command(name)(getattr(import_module(f"luthier.cli.{name}"), name))


_add_rooms()


@cache
def commands() -> Any:
    """The program: made once, however often `main` is called."""
    return typer.main.get_command(app)


def pairs_after_set(arguments: Sequence[str]) -> list[str]:
    """Let `--set` take pairs until the next option: `--set a=1 b=2` becomes `--set a=1 --set b=2`."""
    result: list[str] = []
    open_set = False
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[i:]]
        if argument == "--set":
            open_set = True
            # Without a pair behind it the option is kept, so that it is reported as one that lacks its value.
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            if not _is_pair(following):
                result.append(argument)
        elif open_set and _is_pair(argument):
            result += ["--set", argument]
        else:
            open_set = argument.startswith("--set=")
            result.append(argument)
    return result


def address_after_ray(arguments: Sequence[str]) -> list[str]:
    """Let `--ray` stand without an address: `--ray` becomes `--ray auto`."""
    result: list[str] = []
    for i, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--ray" and (i + 1 == len(arguments) or arguments[i + 1].startswith("-")):
            result.append("auto")
    return result


def _is_pair(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 only if what was asked was done, 2 for what the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a label that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    # Accepted anywhere, also behind the command, where people write it.
    given = address_after_ray(pairs_after_set([a for a in given if a != "--debug"]))
    try:
        code = commands()(given, prog_name="luthier", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer swallows Ctrl-C
            _say("interrupted")
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            import traceback

            traceback.print_exc()
        return _ending(error)


def _ending(error: BaseException) -> int:
    """Say in one line what went wrong; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _say("interrupted")
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output stopped (`| head`): nothing more can be said, nor flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, LuthierError):
        _say(error)
        return 2
    if hasattr(error, "format_message"):
        return _usage(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        return 2
    if isinstance(error, MemoryError):
        _say("memory ran out. Try a smaller --batch-size, --micro-batch or --limit.")
        return 2
    _say(f"{type(error).__name__}: {error} (this is a fault of luthier; --debug shows where)")
    return 1


def _usage(error: Any) -> int:
    """A command line that cannot be understood."""
    context, message = getattr(error, "ctx", None), error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        return 2
    end = "" if message.endswith(("?", ".", "!")) else "."
    _say(f"{message}{end} See: {context.command_path if context else 'luthier'} --help")
    return 2


def _say(text: Any) -> None:
    from luthier.cli.show import plain
    from luthier.train.launched import first_to_fail

    if not first_to_fail():
        return

    print(f"error: {plain(text)}", file=sys.stderr, flush=True)
