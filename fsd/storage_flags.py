"""Flags of the containers-storage command line: their table, its parser, and what ``--help`` prints.

The grammar is that tool's own, not getopt's: ``-name value``, ``-name=value``, quotes around a value are
dropped, letters may be grouped, and parsing stops at the first argument that is no flag.

Nothing here imports anything slow: a listing should take no longer than reading its files.
"""

from __future__ import annotations

import os
import sys

PROGRAM = "containers-storage"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_NARROWEST, _PADDING = 20, 3


class UsageError(Exception):
    """The command line cannot be understood; the text is for the user."""


class HelpWanted(Exception):
    """``--help`` or ``-h`` was given."""


class Retry(Exception):
    """No flag of that name; its letters may be flags."""


class Flag:
    """One flag.

    Attributes:
        names: long ones first; the first is where its value is kept.
        kind: ``bool``, ``str`` or ``list``.
        help: what ``--help`` says.
    """

    __slots__ = ("help", "kind", "names")

    def __init__(self, names: str, kind: type, help: str) -> None:
        self.names = tuple(names.split())
        self.kind = kind
        self.help = help

    @property
    def key(self) -> str:
        """Where its value is kept."""
        return self.names[0]

    @property
    def spellings(self) -> list[str]:
        """The names as they follow the first dash."""
        return [name if len(name) == 1 else f"-{name}" for name in self.names]


STORE_FLAGS = (
    Flag("run R", str, "Root of the runtime state tree"),
    Flag("graph g", str, "Root of the storage tree"),
    Flag("storage-driver s", str, "Storage driver to use ($STORAGE_DRIVER)"),
    Flag("storage-opt", list, "Set storage driver options ($STORAGE_OPTS)"),
    Flag("debug D", bool, "Print debugging information"),
)
NEW_FLAGS = (
    Flag("image-store imagestore", str, "Root of the separate image store"),
    Flag("transient-store", bool, "Transient store"),
)
"""Flags of the newest version, taken but not shown by ``--help``, which is that of 1.43."""
OUR_FLAGS = (
    Flag("json j", bool, "Prefer JSON output"),
    Flag("root", str, "Root of the storage tree"),
    Flag("runroot", str, "Root of the runtime state tree"),
)
"""What may stand before ``storage`` besides, as before any verb of fsd."""
HELP_FLAG = Flag("help", bool, "Print usage")

Values = dict[str, "str | bool | list[str]"]


class FlagSet:
    """The flags of one command, and their values once parsed.

    Args:
        name: the command's; the program's own for what stands before the command.
        flags: which flags there are.
        values: the values before parsing, which ``--help`` shows; parsing changes them.
    """

    def __init__(self, name: str, flags: tuple[Flag, ...], values: Values) -> None:
        self.name = name
        self.values = values
        known = (*flags, *NEW_FLAGS)
        for flag in known:
            values.setdefault(flag.key, flag.kind())
        self._known = {spelling: flag for flag in known for spelling in flag.spellings}
        defaults = ((flag, values[flag.key]) for flag in flags)
        self._shown = [(flag, list(v) if isinstance(v, list) else v) for flag, v in defaults]
        self._args: list[str] = []

    def parse(self, arguments: list[str]) -> list[str]:
        """Take the flags off the front of ``arguments``; the rest.

        Raises:
            UsageError, HelpWanted
        """
        self._args = list(arguments)
        while True:
            try:
                if not self._one():
                    return self._args
            except Retry as unknown:
                self._letters(str(unknown))

    def _letters(self, name: str) -> None:
        """Take the unknown flag ``name`` as a group of one-letter flags."""
        if len(name) < 2:
            raise self._error(f"flag provided but not defined: -{name}")
        for letter in name:
            self._args.insert(0, f"-{letter}")
            try:
                self._one()
            except UsageError as error:
                print(error, file=sys.stderr)
                raise self._error(f"flag provided but not defined: -{name}") from None
            except Retry:
                raise self._error(f"flag provided but not defined: -{name}") from None

    def _one(self) -> bool:
        """Take one flag; whether there was one."""
        if not self._args or not self._args[0].startswith("-") or self._args[0] == "-":
            return False
        text = self._args.pop(0)
        if text == "--":
            return False
        name, equals, value = text[1:].partition("=")
        if not name:
            raise self._error(f"bad flag syntax: {text}")
        flag = self._known.get(name)
        if flag is not None:
            self._set(flag, name, _unquoted(value) if equals else None)
        elif name in ("-help", "help", "h"):
            raise HelpWanted
        elif name.startswith("-"):
            raise self._error(f"flag provided but not defined: -{name}")
        else:
            raise Retry(name)
        return True

    def _set(self, flag: Flag, name: str, value: str | None) -> None:
        if flag.kind is bool:
            if value is not None and value not in _TRUE and value not in _FALSE:
                raise self._error(
                    f'invalid boolean value "{value}" for  -{name}: '
                    f'strconv.ParseBool: parsing "{value}": invalid syntax'
                )
            self.values[flag.key] = value is None or value in _TRUE
            return
        if value is None:
            if not self._args:
                raise self._error(f"flag needs an argument: -{name}")
            value = self._args.pop(0)
        if flag.kind is list:
            self.values[flag.key] = [*self._list(flag.key), value]
        else:
            self.values[flag.key] = value

    def _list(self, key: str) -> list[str]:
        found = self.values[key]
        return found if isinstance(found, list) else []

    def _error(self, text: str) -> UsageError:
        command = PROGRAM if self.name == PROGRAM else f"{PROGRAM} {self.name}"
        return UsageError(f"{text}\nSee '{command} --help'.")

    def describe(self) -> str:
        """The list of flags with their defaults, sorted by name."""
        rows = []
        for flag, value in sorted(self._shown, key=lambda item: item[0].key):
            names = ", ".join(f"-{spelling}" for spelling in flag.spellings)
            rows.append((f"  {names}{_default(flag, value)}", flag.help))
        width = max(_NARROWEST, *(len(names) + _PADDING for names, _ in rows))
        return "\n" + "".join(f"{names:{width}} {text}\n" for names, text in rows)


def _default(flag: Flag, value: str | bool | list[str]) -> str:
    """``=VALUE`` of a default worth showing."""
    if isinstance(value, list):
        return f"=[{' '.join(value)}]" if value or flag.names[0] in ("name", "storage-opt") else ""
    if not value or value == "0" or value == "false":
        return ""
    text = "true" if value is True else str(value)
    home = os.environ.get("HOME", "")
    if home and home != "/" and text.startswith(home):
        text = "~" + text[len(home) :]
    return f"={text}"


def _unquoted(text: str) -> str:
    """``text`` without the quotes around it."""
    if text and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
