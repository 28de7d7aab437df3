"""Help texts, ``fsd/CLI.md`` and the manual pages, all made of the verbs and of the mount helper's options.

``python -m fsd.cli_docs`` writes the three files.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from fsd.cli_arguments import GROUPS
from fsd.cli_table import GLOBAL, Option, Verb
from fsd.cli_verbs import BY_NAME, VERBS
from fsd.mount_helper import FLAGS, IGNORED, IGNORED_BEGINNINGS, WORDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

DESCRIPTION = "Container storage as files: every layer, image and container of a store is a directory."
STORE = (
    "The store is the one of storage.conf (CONTAINERS_STORAGE_CONF, STORAGE_DRIVER and STORAGE_OPTS count) "
    "unless options say otherwise. Everything but up works without a mount; where one "
    "is up, it shows the change."
)
CODES = (
    ("0", "done"),
    ("1", "a negative answer: not found, not up, not healthy, damaged, different"),
    ("2", "the command line cannot be understood"),
    ("125", "failure; the text says what, why, who holds it and what to do"),
)
OBJECTS = (
    "An object is named as podman would: by name, short name, ID, the beginning of an ID, or digest. Where "
    "a name means several, images/NAME, containers/NAME or layers/NAME says which. "
    "CONTAINER@SNAPSHOT is a snapshot."
)
STORAGE = "fsd storage … is the command line of containers-storage; fsd/STORAGE.md has more."
WIDTH = 100
REFERENCE = Path(__file__).with_name("CLI.md")
MANUAL = Path(__file__).with_name("fsd.1")
MOUNT_MANUAL = Path(__file__).with_name("mount.fuse.fsd.8")
MOUNT_USAGE = (
    "mount -t fuse.fsd SOURCE DIR [-o OPTION,...]",
    "mount.fuse.fsd SOURCE DIR [-sfnv] [-o OPTION,...]",
)
MOUNT_TEXT = (
    "mount(8) runs this helper for the file system type fuse.fsd, given to it or in a line of fstab. "
    "It starts the daemon of fsd(1) and returns when the tree answers; umount ends the daemon.",
    "SOURCE is a graphroot, or a word such as fsd for the store that storage.conf names. DIR is an empty "
    "directory.",
)
MOUNT_EXAMPLES = (
    "mount -t fuse.fsd fsd /mnt",
    "mount -t fuse.fsd /var/lib/containers/storage /mnt -o allow_other",
    "fsd /mnt fuse.fsd noauto,allow_other 0 0",
)
"""The last is a line of fstab."""
MOUNT_CODES = (("0", "mounted"), ("1", "the arguments cannot be understood"), ("32", "not mounted"))


def usage(verb: Verb) -> str:
    """The usage line of a verb."""
    parts = ["fsd", verb.name, *(["[OPTIONS]"] if verb.options else []), *(a.shown for a in verb.arguments)]
    return " ".join(parts)


def show_help(args: argparse.Namespace) -> int:
    """``fsd help``."""
    from fsd.cli import Usage

    if args.command is None:
        print(overview(), end="")
    elif args.command in BY_NAME:
        print(verb_help(BY_NAME[args.command]), end="")
    else:
        raise Usage(f"there is no command {args.command!r:.80}")
    return 0


def overview() -> str:
    """What ``fsd --help`` prints."""
    parts = [f"Usage: fsd [OPTIONS] COMMAND …\n\n{DESCRIPTION}\n"]
    for group in GROUPS:
        rows = [(verb.name, verb.summary) for verb in VERBS if verb.group == group]
        parts.append(f"\n{group}:\n{_columns(rows)}")
    parts.append(f"\nOptions of every command:\n{_columns((o.shown, o.help) for o in GLOBAL)}")
    parts.append(f"\n{_wrapped(OBJECTS)}\n{_wrapped(STORE)}\n{_wrapped(STORAGE)}")
    codes = ", ".join(f"{code} {text.partition(':')[0].partition(';')[0]}" for code, text in CODES)
    return "".join([*parts, f"Exit codes: {codes}. fsd help COMMAND says more.\n"])


def verb_help(verb: Verb) -> str:
    """What ``fsd VERB --help`` prints."""
    parts = [f"Usage: {usage(verb)}\n\n{_sentence(verb.summary)}\n"]
    if verb.details:
        parts.append(_wrapped(verb.details))
    if verb.arguments:
        rows = ((a.name, _with_choices(a.help, a.choices)) for a in verb.arguments)
        parts.append(f"\nArguments:\n{_columns(rows)}")
    if verb.options:
        parts.append(f"\nOptions:\n{_columns((o.shown, o.help) for o in verb.options)}")
    parts.append(f"\nOptions of every command:\n{_columns((o.shown, o.help) for o in GLOBAL)}")
    others = f"Also called {', '.join(verb.names[1:])}.\n" if verb.names[1:] else ""
    return "".join([*parts, f"\n{others}" if others else ""])


def _with_choices(text: str, choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices)}: {text}" if choices else text


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH) + "\n"


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    listed = list(rows)
    width = min(28, max(len(name) for name, _ in listed)) + 2
    lines = []
    for name, text in listed:
        indent = " " * (width + 2)
        first, *rest = textwrap.wrap(text, WIDTH - width - 2) or [""]
        if len(name) > width - 2:
            lines += [f"  {name}", f"{indent}{first}"]
        else:
            lines.append(f"  {name:{width}}{first}".rstrip())
        lines += [f"{indent}{line}" for line in rest]
    return "\n".join(lines) + "\n"


# -- the reference ---------------------------------------------------------------------------------


def reference() -> str:
    """The text of ``fsd/CLI.md``."""
    parts = [
        "# The fsd command\n",
        "Made from `fsd/cli_verbs.py` by `python -m fsd.cli_docs`; a test keeps the two equal.\n",
        f"{DESCRIPTION} {STORE}\n",
        f"{OBJECTS}\n",
        f"{STORAGE}\n",
        "| exit code | meaning |\n|---|---|\n" + "".join(f"| {code} | {text} |\n" for code, text in CODES),
        "## Options of every command\n",
        _option_table(GLOBAL),
    ]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        parts += [_verb_reference(verb) for verb in VERBS if verb.group == group]
    return "\n".join(parts)


def _verb_reference(verb: Verb) -> str:
    also = f" Also called {', '.join(f'`{name}`' for name in verb.names[1:])}." if verb.names[1:] else ""
    parts = [f"### {verb.name}\n", f"    {usage(verb)}\n", f"{_sentence(verb.summary)}{also}\n"]
    if verb.details:
        parts.append(f"{verb.details}\n")
    rows = [(a.name, _with_choices(a.help, a.choices)) for a in verb.arguments]
    rows += [(o.shown, o.help) for o in verb.options]
    if rows:
        parts.append(_table(rows))
    return "\n".join(parts)


def _option_table(options: Iterable[Option]) -> str:
    return _table([(option.shown, option.help) for option in options])


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| `{name.replace('|', '&#124;')}` | {text} |\n" for name, text in rows]
    return "| | |\n|---|---|\n" + "".join(line.replace("`&#124;", "`") for line in lines)


# -- the manual page -------------------------------------------------------------------------------


def manual() -> str:
    """The text of ``fsd/fsd.1``, in man(7)."""
    parts = [
        '.TH FSD 1 "" "fsd" "User Commands"\n',
        f".SH NAME\nfsd \\- {_roff(DESCRIPTION.partition(':')[0].lower())}\n",
        ".SH SYNOPSIS\n.B fsd\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR \\&...\n",
        ".SH DESCRIPTION\n",
        "\n.PP\n".join(map(_roff, (DESCRIPTION, STORE, OBJECTS, STORAGE))) + "\n",
        ".SH OPTIONS OF EVERY COMMAND\n",
        *(_item(option.shown, option.help) for option in GLOBAL),
    ]
    for group in GROUPS:
        parts.append(f".SH {group.upper()}\n")
        parts += [_verb_manual(verb) for verb in VERBS if verb.group == group]
    parts.append(".SH EXIT STATUS\n" + "".join(_item(code, text) for code, text in CODES))
    parts.append(".SH SEE ALSO\ncontainers-storage.conf(5), podman(1), btrfs(8)\n")
    return "".join(parts)


def mount_help() -> str:
    """What ``mount.fuse.fsd --help`` prints."""
    usages = "".join(f"{'Usage:' if n == 0 else '      '} {text}\n" for n, text in enumerate(MOUNT_USAGE))
    texts = "".join(map(_wrapped, MOUNT_TEXT))
    codes = ", ".join(" ".join(code) for code in MOUNT_CODES)
    return f"{usages}\n{texts}\nOptions:\n{_columns(_mount_options())}\nExit codes: {codes}.\n"


def mount_manual() -> str:
    """The text of ``fsd/mount.fuse.fsd.8``, in man(7)."""
    parts = [
        '.TH MOUNT.FUSE.FSD 8 "" "fsd" "System Administration"\n',
        ".SH NAME\nmount.fuse.fsd \\- mount a container store as files\n",
        ".SH SYNOPSIS\n",
        "\n.br\n".join(f".B {_roff(text)}" for text in MOUNT_USAGE) + "\n",
        ".SH DESCRIPTION\n",
        "\n.PP\n".join(map(_roff, MOUNT_TEXT)) + "\n",
        ".SH OPTIONS\n",
        *(_item(name, text) for name, text in _mount_options()),
        ".SH EXIT STATUS\n",
        *(_item(code, text) for code, text in MOUNT_CODES),
        ".SH EXAMPLES\n.nf\n",
        *(f"{_roff(text)}\n" for text in MOUNT_EXAMPLES),
        ".fi\n.SH SEE ALSO\nfsd(1), mount(8), fstab(5), containers-storage.conf(5)\n",
    ]
    return "".join(parts)


def _mount_options() -> list[tuple[str, str]]:
    """The options of the mount helper, with the help of the flags they stand for."""
    flags = {name: option for option in (*GLOBAL, *BY_NAME["up"].options) for name in option.names}
    rows = [(f"{key}={flags[flag].metavar}", flags[flag].help) for key, flag in FLAGS.items()]
    rows += [(word, flags[flag].help) for word, flag in WORDS.items()]
    rows.append(("ro", "refused: the tree takes commands by writes"))
    accepted = ", ".join([*sorted(IGNORED), *(f"{beginning}..." for beginning in IGNORED_BEGINNINGS)])
    return [*rows, ("generic options", f"accepted, and change nothing: {accepted}")]


def _verb_manual(verb: Verb) -> str:
    rows = [(a.name, _with_choices(a.help, a.choices)) for a in verb.arguments]
    rows += [(o.shown, o.help) for o in verb.options]
    details = f"{_roff(verb.details)}\n" if verb.details else ""
    inner = "".join(_item(name, text) for name, text in rows)
    return f".SS {_roff(usage(verb))}\n{_roff(_sentence(verb.summary))}\n{details}{inner}"


def _item(name: str, text: str) -> str:
    return f".TP\n.B {_roff(name)}\n{_roff(text)}\n"


def _roff(text: str) -> str:
    """``text`` with what man(7) would take for a request or a dash of its own made harmless."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    MANUAL.write_text(manual(), encoding="utf-8")
    MOUNT_MANUAL.write_text(mount_manual(), encoding="utf-8")
