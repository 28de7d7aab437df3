"""``mount.fuse.fsd``: what mount(8) runs for ``mount -t fuse.fsd SOURCE DIR`` and for a line of fstab.

``SOURCE`` is a graphroot, or a word such as ``fsd`` for the store that storage.conf names. Of the options,
``graphroot=``, ``runroot=``, ``imagestore=``, ``driver=``, ``allow_other``, ``no_pool`` and ``debug`` are
fsd's own; those that every filesystem takes, or that are meant for mount or systemd, are accepted and change
nothing.

Exit codes are mount's: 0 mounted, 1 wrong usage, 32 not mounted.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOUNTED, USAGE, FAILED = 0, 1, 32
FLAGS = {
    "graphroot": "--graph",
    "runroot": "--run",
    "imagestore": "--imagestore",
    "driver": "--storage-driver",
}
"""Options with a value, and what they are called on fsd's command line."""
WORDS = {"allow_other": "--allow-other", "no_pool": "--no-pool", "debug": "--debug"}
IGNORED = frozenset(
    [
        "defaults",
        "rw",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "dev",
        "nodev",
        "suid",
        "nosuid",
        "exec",
        "noexec",
        "async",
        "sync",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "silent",
        "loud",
        "default_permissions",
    ]
)
IGNORED_BEGINNINGS = ("x-", "X-", "comment=", "fsname=", "subtype=", "user=", "context=")


class Refused(Exception):
    """The arguments ask for what fsd does not do; the text says what."""


def command_line(argv: Sequence[str]) -> list[str] | None:
    """The words of ``fsd`` that mount what mount(8) asks for; ``None`` if it asks for nothing (``-f``).

    Raises:
        Refused: an argument or option is wrong or not supported
    """
    places: list[str] = []
    options: list[str] = []
    fake = False
    words = iter(argv)
    for word in words:
        if word in ("-o", "-t", "-N"):
            value = next(words, None)
            if value is None:
                raise Refused(f"{word} needs a value")
            options += value.split(",") if word == "-o" else []
        elif word.startswith("-") and word != "-" and set(word[1:]) <= set("sfnv"):
            fake |= "f" in word
        elif word.startswith("-"):
            raise Refused(f"unknown option {word}")
        else:
            places.append(word)
    if len(places) != 2:
        raise Refused("usage: mount.fuse.fsd SOURCE DIR [-sfnv] [-o OPTIONS]")
    given = _given(options)
    source = ["--graph", places[0]] if places[0].startswith("/") and "--graph" not in given else []
    return None if fake else ["up", *source, *given, places[1]]


def _given(options: Sequence[str]) -> list[str]:
    """The flags that options stand for."""
    flags: list[str] = []
    for option in filter(None, options):
        key, equals, value = option.partition("=")
        if key in FLAGS and equals:
            flags += [FLAGS[key], value]
        elif option in WORDS:
            flags.append(WORDS[option])
        elif option == "ro":
            raise Refused("ro: the tree takes commands by writes, so it is not mounted read-only")
        elif option not in IGNORED and not option.startswith(IGNORED_BEGINNINGS):
            raise Refused(f"unknown mount option {option!r}")
    return flags


def main() -> int:
    """Run the command line of this process; the exit code."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        from fsd.cli_docs import mount_help

        print(mount_help(), end="")
        return MOUNTED
    try:
        words = command_line(sys.argv[1:])
    except Refused as error:
        print(f"mount.fuse.fsd: {error}", file=sys.stderr)
        return USAGE
    if words is None:
        return MOUNTED
    import contextlib
    import os

    from fsd.cli import main as fsd_main

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # as mount, say nothing
        code = fsd_main(words)
    return {0: MOUNTED, 2: USAGE}.get(code, FAILED)


if __name__ == "__main__":
    raise SystemExit(main())
