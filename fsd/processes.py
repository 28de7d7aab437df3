"""What proc(5) says of the processes that use the mount."""

from __future__ import annotations

import os

from drivers.processes import stat_fields

_MASKS = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:")
_STAT_FLAGS, _STAT_EXIT_CODE = 9 - 3, 52 - 3
"""Places in :func:`~drivers.processes.stat_fields` of fields 9 and 52."""
_PF_EXITING = 0x4
"""<linux/sched.h>; descriptors are closed after it is set, and the exit code too."""
_SIGNAL = 0x7F
"""The part of an exit code that is the signal."""


def has_signal(pid: int) -> bool:
    """Whether a process has a signal waiting that would end a blocking call; true once it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b"\t", 1) for line in file if line[:7] in _MASKS)
    except OSError:
        return True
    masks = {name: int(value, 16) for name, value in fields.items()}
    private, shared, blocked, ignored = (masks.get(name, 0) for name in _MASKS)
    return bool((private | shared) & ~(blocked | ignored))


def holds_to_write(pid: int, inode: int) -> bool:
    """Whether a process has an inode open for writing, as far as that can be seen (Linux 5.14)."""
    wanted = b"ino:\t%d\n" % inode
    try:
        names = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return False
    for name in names:
        try:
            with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
                lines = file.readlines()
        except OSError:  # it is closed meanwhile
            continue
        if wanted in lines and _flags(lines) & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False


def _flags(lines: list[bytes]) -> int:
    return next((int(line.split()[1], 8) for line in lines if line.startswith(b"flags:")), 0)


def was_killed(pid: int) -> bool:
    """Whether a process is ending because of a signal; false where that cannot be seen."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return False
    return bool(int(fields[_STAT_FLAGS]) & _PF_EXITING and int(fields[_STAT_EXIT_CODE]) & _SIGNAL)
