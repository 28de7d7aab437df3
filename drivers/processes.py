"""Names that tell which process uses something on disk, for sweeping what a crash left."""

from __future__ import annotations

import os
from pathlib import Path


def private_name() -> str:
    """A name no one else makes: process ID, the process's start time, and random digits."""
    pid = os.getpid()
    return f"{pid}-{_started(pid)}-{os.urandom(6).hex()}"


def is_alive(name: str) -> bool:
    """Whether the process that made a :func:`private_name` still runs, as far as this one can see."""
    pid, _, rest = name.partition("-")
    start = rest.partition("-")[0]
    return pid.isdigit() and start != "" and _started(int(pid)) == start


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5) field 22), empty if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
