"""The ``fsd`` command: parse, one call, print.

::

    cli          options, dispatch, exit codes
    cli_store    which store: flags, environment, storage.conf, the embedded pool
    cli_daemon   up, down, status, health
    cli_objects  images, containers, layers, import, create, snapshot, rollback
    doctor       doctor
    output       tables, trees, progress, JSON

Exit codes: 0 done; 1 a negative answer (not found, not up, unhealthy); 2 usage; 125 failure. Only
``fsd up --foreground`` imports the FUSE side, so everything else works, and starts fast, without it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from fsd import __version__, cli_daemon, cli_objects, doctor
from fsd.mounts import MountError
from fsd.runfile import AlreadyUp

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_OK, EXIT_NEGATIVE, EXIT_USAGE, EXIT_ERROR = 0, 1, 2, 125

DESCRIPTION = "Container storage as files: every layer, image and container of a store is a directory."
EPILOG = (
    "Exit codes: 0 done, 1 negative answer, 2 usage, 125 failure. The store is the one of storage.conf "
    "(CONTAINERS_STORAGE_CONF, STORAGE_DRIVER and STORAGE_OPTS count) unless options say otherwise."
)


GLOBAL_DEFAULTS: dict[str, Any] = {
    "graph": None,
    "run": None,
    "storage_driver": None,
    "storage_opt": None,
    "json": False,
    "debug": False,
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to get help."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = global_options()
    parser = Parser(prog="fsd", description=DESCRIPTION, epilog=EPILOG, parents=[common])
    parser.add_argument("--version", action="version", version=f"fsd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for module in (cli_daemon, cli_objects, doctor):
        module.add_commands(commands, common)
    return parser


def global_options() -> argparse.ArgumentParser:
    """Options every command takes, before or after its name, spelt as containers/storage and podman do."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("global options")
    group.add_argument(
        "-g", "--graph", "--root", metavar="DIR", help="graphroot: persistent state of the store"
    )
    group.add_argument("-R", "--run", "--runroot", metavar="DIR", help="runroot: state lost at reboot")
    group.add_argument("-s", "--storage-driver", metavar="NAME", help="graph driver")
    group.add_argument("--storage-opt", metavar="OPT", action="append", help="driver option (repeatable)")
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument("-D", "--debug", action="store_true", help="log every step to standard error")
    return common


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default ``sys.argv[1:]``); the exit code."""
    try:
        code = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        return _quiet_stdout()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


def _main(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as end:  # after --help, --version or a usage error
        return int(end.code or 0)
    for name, default in GLOBAL_DEFAULTS.items():
        vars(args).setdefault(name, default)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        return int(args.run_command(args))
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(error, debug=args.debug)


def _quiet_stdout() -> int:
    """The reader of our output went away; let nothing more be written, or complained about, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _failed(error: Exception, *, debug: bool) -> int:
    """Print the text of a failure; a traceback only for a defect, or on request."""
    if debug or not _expected(error):
        logging.getLogger("fsd").error("%s failed", "fsd", exc_info=error)
    text = str(error) or type(error).__name__
    print(
        f"fsd: {text if _expected(error) else f'internal error: {type(error).__name__}: {text}'}",
        file=sys.stderr,
    )
    return EXIT_ERROR


def _expected(error: Exception) -> bool:
    from drivers.errors import DriverError
    from store.errors import StoreError

    return isinstance(error, (StoreError, DriverError, MountError, AlreadyUp, OSError))


if __name__ == "__main__":
    raise SystemExit(main())
