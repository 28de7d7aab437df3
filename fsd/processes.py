"""What proc(5) says of the processes that use the mount."""

from __future__ import annotations

_PENDING = (b"SigPnd:", b"ShdPnd:")
_BLOCKED = (b"SigBlk:", b"SigIgn:")


def has_signal(pid: int) -> bool:
    """Whether a process has a signal waiting that would end a blocking call; true once it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b"\t", 1) for line in file if line[:7] in (*_PENDING, *_BLOCKED))
    except OSError:
        return True
    masks = {name: int(value, 16) for name, value in fields.items()}
    pending = sum_of(masks, _PENDING)
    return bool(pending & ~sum_of(masks, _BLOCKED))


def sum_of(masks: dict[bytes, int], names: tuple[bytes, ...]) -> int:
    """The signals in any of several masks."""
    found = 0
    for name in names:
        found |= masks.get(name, 0)
    return found
