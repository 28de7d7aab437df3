"""The command line of containers-storage 1.43, in its own grammar and with its own output.

``fsd storage …`` is that tool, and so is fsd under the name ``containers-storage``. Its verbs that fsd's own
command line lacks work without the prefix (``fsd -g G -R R exists web``); those that both have (``images``,
``diff``, …) mean that tool's where the graphroot, the runroot and the driver are all given before
them, as its callers do. Differences: ``fsd/STORAGE.md``.

::

    storage_flags     flags and their grammar     storage_table   the subcommands
    storage_context   one run: store and output   storage_errors  its error texts
    storage_show      listings and lookups, which read the tables without opening the store
    storage_data, _create, _delete, _diff, _mount, _sizes, _copy    the rest, over the store
"""

from __future__ import annotations

import sys

from fsd.storage_flags import (
    HELP_FLAG,
    OUR_FLAGS,
    PROGRAM,
    STORE_FLAGS,
    FlagSet,
    HelpWanted,
    UsageError,
    Values,
)
from fsd.storage_table import BY_NAME, COMMANDS, SHARED, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fsd.storage_context import Run
    from store.config import StoreOptions

EXIT_OK, EXIT_FAILED, EXIT_BAD_FLAGS = 0, 1, 125


def is_meant(arguments: list[str]) -> bool:
    """Whether a command line of fsd is one of containers-storage; see the module's text."""
    values: Values = {}
    flags = FlagSet(PROGRAM, STORE_FLAGS, values)
    try:
        rest = flags.parse(arguments)
    except (UsageError, HelpWanted):
        return False
    if not rest or rest[0] not in BY_NAME:
        return False
    return rest[0] not in SHARED or all(values[key] for key in ("graph", "run", "storage-driver"))


def after_the_word(arguments: list[str]) -> tuple[list[str], Values] | None:
    """What follows ``storage`` and the flags before it; ``None`` if that is not what the line begins with.

    ``--json`` may stand there too, and ``--root`` and ``--runroot`` are understood: they are fsd's flags.
    """
    values: Values = {}
    try:
        rest = FlagSet(PROGRAM, (*STORE_FLAGS, *OUR_FLAGS), values).parse(arguments)
    except (UsageError, HelpWanted):
        return None
    if rest[:1] != ["storage"]:
        return None
    for ours, theirs in (("root", "graph"), ("runroot", "run")):
        values[theirs] = values.pop(ours) or values[theirs]
    return rest[1:], values


def main(arguments: list[str] | None = None, values: Values | None = None) -> int:
    """Run a command line; the exit code.

    Args:
        values: flags that were given before it.
    """
    given = sys.argv[1:] if arguments is None else arguments
    values = {} if values is None else values
    flags = FlagSet(PROGRAM, (*STORE_FLAGS, HELP_FLAG), values)
    if not given:
        return _usage(flags)
    try:
        rest = flags.parse(given)
    except HelpWanted:
        _usage(flags)
        print("flag: help requested while parsing arguments (1)", flush=True)
        return _usage(flags)
    except UsageError as error:
        print(error, file=sys.stderr, flush=True)
        print(f"{str(error).partition(chr(10))[0]} while parsing arguments (1)", flush=True)
        return _usage(flags)
    if values["help"]:
        return _usage(flags, EXIT_OK)
    try:
        defaults = _set_defaults(values) if not rest or rest[0] in BY_NAME else None
    except Exception as error:
        return _unreadable(error)
    if not rest:
        return _usage(flags)
    return _command(rest[0], rest[1:], values, defaults)


def _command(name: str, arguments: list[str], values: Values, defaults: StoreOptions | None) -> int:
    command = BY_NAME.get(name)
    if command is None:
        print(f"{name}: unrecognized command.", flush=True)
        return EXIT_FAILED
    flags = FlagSet(name, (*STORE_FLAGS, *command.flags), values)
    try:
        rest = flags.parse(arguments)
    except HelpWanted:
        _command_usage(name, command, flags)
        return EXIT_BAD_FLAGS
    except UsageError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_FLAGS
    if len(rest) < command.least:
        print(f"{name}: more arguments required.")
        return _command_usage(name, command, flags)
    if command.most and len(rest) > command.most:
        print(f"{name}: too many arguments ([{' '.join(rest)}]).")
        return _command_usage(name, command, flags)
    return _act(command, values, rest, defaults)


def _act(command: Command, values: Values, arguments: list[str], defaults: StoreOptions | None) -> int:
    from fsd.storage_context import CannotOpen, Failure, Run

    run = Run(values, arguments, defaults)
    if run.on("debug"):
        _log_everything(run)
    module = __import__(f"fsd.storage_{command.module}", fromlist=[command.action])
    try:
        return int(getattr(module, command.action)(run))
    except CannotOpen as error:
        run.say(f"error initializing: {error}\n")
    except Failure as error:
        if str(error):
            run.complain(str(error))
    except BrokenPipeError:
        return _closed_pipe()
    except Exception as error:
        _report(run, error)
    return EXIT_FAILED


def _unreadable(error: Exception) -> int:
    """Say why the configuration cannot be used."""
    from fsd.storage_errors import EXPECTED

    if not isinstance(error, EXPECTED):
        raise error
    print(f"error initializing: {error}", flush=True)
    return EXIT_FAILED


def _report(run: Run, error: Exception) -> None:
    """Print an error no subcommand words in a way of its own; a traceback only for a defect."""
    from fsd.storage_errors import EXPECTED, text_of

    if not isinstance(error, EXPECTED):
        import traceback

        traceback.print_exception(error)
    run.complain(text_of(error))


def _closed_pipe() -> int:
    """The reader went away: write nothing more, and end as a process killed by SIGPIPE does."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + 13


def _set_defaults(values: Values) -> StoreOptions | None:
    """Where no flag says which store is meant, storage.conf and the environment do; what they say then.

    Where one does nothing of them counts but the place of the other root, as in containers/storage.
    """
    if any(values[key] for key in ("graph", "run", "storage-driver", "storage-opt")):
        return None
    from store.config import load_options

    options = load_options()
    values["graph"] = options.graphroot
    values["run"] = options.runroot
    values["storage-driver"] = options.driver
    values["storage-opt"] = list(options.driver_options)
    values["image-store"], values["transient-store"] = options.image_store, options.transient_store
    return options


def _log_everything(run: Run) -> None:
    import logging

    logging.basicConfig(level=logging.DEBUG, format='level=%(levelname)s msg="%(message)s"')
    log = logging.getLogger(PROGRAM)
    log.debug("Root: %s", run.text("graph"))
    log.debug("Run Root: %s", run.text("run"))
    log.debug("Driver Name: %s", run.text("storage-driver"))
    log.debug("Driver Options: [%s]", " ".join(run.texts("storage-opt")))


def _usage(flags: FlagSet, code: int = EXIT_FAILED) -> int:
    print(f"Usage: {PROGRAM} command [options [...]]\n\nCommands:\n")
    for command in COMMANDS:
        print(f"  {command.names[0]:30}{command.purpose}")
    print("\nOptions:", flush=True)
    print(flags.describe(), end="", file=sys.stdout if code == EXIT_OK else sys.stderr, flush=True)
    return code


def _command_usage(name: str, command: Command, flags: FlagSet) -> int:
    print(f"Usage: {PROGRAM} {name} {command.arguments}\n\n{command.purpose}\n\nOptions:", flush=True)
    print(flags.describe(), end="", file=sys.stderr, flush=True)
    return EXIT_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
