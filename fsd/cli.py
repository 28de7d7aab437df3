"""The ``fsd`` command: parse, one call, print.

::

    cli_table, cli_verbs    the verbs as data: names, arguments, and where the function is
    cli_store               which store: flags, environment, storage.conf, the embedded pool; opening it
    cli_lists, cli_space    looking: tables, trees, files, sizes
    cli_objects, cli_snapshots, cli_images, cli_upkeep    changing
    cli_start, cli_daemon, cli_watch, doctor              the daemon and the machine
    cli_docs, cli_completion                              what is made of the verbs
    output                  tables, trees, progress, JSON

Exit codes: 0 done; 1 a negative answer (not found, not up, unhealthy); 2 usage; 125 failure. Only
``fsd up --foreground`` imports the FUSE side, so everything else works, and starts fast, without it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from fsd.cli_table import GLOBAL, Argument, Option, Verb
from fsd.cli_verbs import BY_NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

EXIT_OK, EXIT_NEGATIVE, EXIT_USAGE, EXIT_ERROR = 0, 1, 2, 125
_SIGINT, _SIGPIPE = 2, 13
_BY_SPELLING = {name: option for option in GLOBAL for name in option.names}


class Usage(Exception):
    """The command line cannot be understood; the text is one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default ``sys.argv[1:]``); the exit code."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        return _quiet_stdout()
    except KeyboardInterrupt:
        return 128 + _SIGINT
    return code


def _main(argv: list[str]) -> int:
    try:
        verb, rest = find_verb(argv)
        if verb is None:
            return _without_verb(rest)
        args = parse(verb, rest)
    except Usage as error:
        print(f"fsd: {error}", file=sys.stderr)
        return EXIT_USAGE
    if args.help:
        from fsd.cli_docs import verb_help

        print(verb_help(verb), end="")
        return EXIT_OK
    return run(verb, args)


def run(verb: Verb, args: argparse.Namespace) -> int:
    """Do what a verb does; its failures become text and exit code."""
    if args.debug or verb.name == "up":  # a warning of any other is its text alone
        _log(debug=args.debug)
    try:
        return int(verb.function()(args))
    except BrokenPipeError:
        raise
    except Usage as error:
        print(f"fsd: {error}; see fsd {verb.name} --help", file=sys.stderr)
        return EXIT_USAGE
    except Exception as error:
        return _failed(error, verb, debug=args.debug)


def _log(*, debug: bool) -> None:
    import logging

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )


def _without_verb(argv: list[str]) -> int:
    if "--version" in argv:
        from fsd import __version__

        print(f"fsd {__version__}")
        return EXIT_OK
    if "-h" in argv or "--help" in argv:
        from fsd.cli_docs import overview

        print(overview(), end="")
        return EXIT_OK
    raise Usage("a command is needed; see fsd --help")


# -- parsing ---------------------------------------------------------------------------------------


def find_verb(argv: list[str]) -> tuple[Verb | None, list[str]]:
    """The verb of a command line, ``None`` without one, and everything else in it.

    Raises:
        Usage: there is no such verb, or no such global option before it
    """
    at = 0
    while at < len(argv):
        word = argv[at]
        if not word.startswith("-") or word == "-":
            if word == "__complete":
                return _COMPLETE, [*argv[:at], *argv[at + 1 :]]
            if word not in BY_NAME:
                raise Usage(f"there is no command {word!r:.80}; {_instead(word)}see fsd --help")
            return BY_NAME[word], [*argv[:at], *argv[at + 1 :]]
        at += 1 + _takes_next(word)
    return None, argv


def _takes_next(word: str) -> bool:
    """Whether the word after a global option is its value."""
    name = word.partition("=")[0]
    if name == "--version":
        return False
    option = _BY_SPELLING.get(name) or _BY_SPELLING.get(word[:2])
    if option is None or (name != word and not option.metavar):
        raise Usage(f"there is no option {name!r:.80} before the command; see fsd --help")
    return bool(option.metavar) and word in option.names


def _instead(word: str) -> str:
    """What to do instead of a command that fsd does not have."""
    if word in _RUNNING:
        return "podman runs containers, on the same store; "
    if word in _ELSEWHERE:
        return f"{_ELSEWHERE[word]}; "
    from difflib import get_close_matches

    near = get_close_matches(word, BY_NAME, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? " if near else ""


_RUNNING = ("attach", "exec", "kill", "logs", "pause", "pod", "restart", "run", "start", "stop", "wait")
_ELSEWHERE = {
    "cp": "fsd cat prints one file, fsd export a tree, and in the mounted tree cp works both ways",
    "ps": "fsd containers lists them",
    "rmi": "fsd rm removes images too",
    "system": "fsd df measures, fsd prune cleans up",
    "volume": "podman keeps volumes",
}
"""What people type who know podman."""


_COMPLETE = Verb(
    "__complete",
    "",
    "cli_completion.complete",
    "names a shell completes with",
    Argument("KIND", "what is completed"),
    Argument("WORD", "the words before", "*"),
)
"""Not in the table: shells alone call it."""


def parse(verb: Verb, words: list[str]) -> argparse.Namespace:
    """The values of a verb's arguments; ``Usage``."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise Usage(f"{verb.name}: {message}; see fsd {verb.name} --help")

    parser = Parser(
        prog=f"fsd {verb.name}",
        add_help=False,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),  # shown nowhere, and cheaper
    )
    for option in (*GLOBAL, *verb.options):
        _add_option(parser, option)
    for argument in verb.arguments:
        parser.add_argument(
            argument.key,
            metavar=argument.name,
            nargs=argument.many or None,
            choices=argument.choices or None if argument.many != "*" else None,
        )
    if "-h" in words or "--help" in words:
        return argparse.Namespace(help=True)
    args = parser.parse_intermixed_args(words)
    _check_choices(verb, args)
    return args


def _check_choices(verb: Verb, args: argparse.Namespace) -> None:
    """argparse would hold an empty list against the choices too."""
    for argument in verb.arguments:
        if argument.many == "*" and argument.choices:
            for word in getattr(args, argument.key):
                if word not in argument.choices:
                    ways = ", ".join(argument.choices)
                    raise Usage(f"{verb.name}: {word!r} is none of {ways}; see fsd {verb.name} --help")


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if not option.metavar:
        parser.add_argument(*option.names, dest=option.key, action="store_true")
    else:
        parser.add_argument(
            *option.names,
            dest=option.key,
            metavar=option.metavar,
            action="append" if option.many else "store",
            choices=option.choices or None,
            default=option.default,
        )


# -- failures --------------------------------------------------------------------------------------


def _quiet_stdout() -> int:
    """The reader of our output went away; let nothing more be written, or complained about, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + _SIGPIPE


def _failed(error: Exception, verb: Verb, *, debug: bool) -> int:
    """Print the text of a failure; a traceback only for a defect, or on request."""
    from drivers.errors import DriverError
    from fsd.mounts import MountError
    from fsd.runfile import AlreadyUp
    from store.errors import StoreError, Unknown

    expected = isinstance(error, (StoreError, DriverError, MountError, AlreadyUp, OSError))
    if debug or not expected:
        import logging

        logging.getLogger("fsd").error("%s failed", "fsd", exc_info=error)
    text = _text(error) if expected else f"internal error: {type(error).__name__}: {error}"
    print(f"fsd: {text}", file=sys.stderr)
    return EXIT_NEGATIVE if verb.question and isinstance(error, Unknown) else EXIT_ERROR


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
