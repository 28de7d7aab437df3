"""Recording what system calls do, to compare two file systems call by call."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

from tests.support.rootfs_samples import GROUP, USER, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def outcome(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        result = function(*args, **more)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc))
    return result if isinstance(result, int | bytes | str | list | None) else type(result).__name__


class Record:
    """Outcomes by what was done; one that is done again gets a number."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __call__(self, label: str, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call, note the outcome under the label, and return it."""
        result = outcome(function, *args, **more)
        self.note(label, result)
        return result

    def note(self, label: str, value: Any) -> None:
        """Note a value."""
        number, key = 1, label
        while key in self.found:
            number += 1
            key = f"{label} {number}"
        self.found[key] = value


def as_user_in(top: Path, code: str, groups: Sequence[int] = (), umask: int = 0o022) -> str:
    """Run code as another user in a directory that this user may not be able to get to."""
    prologue = f"import mmap, os\nos.setgroups({list(groups)})\nos.umask({umask})\n"
    prologue += f"os.setresgid({GROUP}, {GROUP}, {GROUP})\nos.setresuid({USER}, {USER}, {USER})\n"
    return run(sys.executable, "-S", "-c", prologue + code, cwd=top).stdout


T = """
import errno
def t(what, f, *x, **y):
    try: r = f(*x, **y)
    except OSError as e: r = errno.errorcode[e.errno]
    print(what, r if isinstance(r, (int, bytes, str, type(None))) else type(r).__name__)
    return r
def mode(p): return oct(os.lstat(p).st_mode) + ' %d:%d' % (os.lstat(p).st_uid, os.lstat(p).st_gid)
"""
"""For code run as another user: ``t`` prints an outcome, ``mode`` tells type, permissions and owner."""


def note_lines(record: Record, label: str, text: str) -> None:
    """Note each line such code printed."""
    for number, line in enumerate(text.splitlines(), 1):
        record.note(f"{label} {number}", line)
