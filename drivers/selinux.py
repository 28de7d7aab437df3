"""SELinux labels of layers: what ``--mount-label`` means where the kernel has SELinux (selinux(8))."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ENFORCE = "/sys/fs/selinux/enforce"
_ATTRIBUTE = "security.selinux"


def enabled() -> bool:
    """Whether the kernel runs with SELinux."""
    return os.path.exists(_ENFORCE)


def relabel(root: Path, label: str) -> None:
    """Give ``root`` and everything below it ``label``; nothing without SELinux or with an empty label."""
    if not label or not enabled():
        return
    value = label.encode() + b"\0"
    os.setxattr(root, _ATTRIBUTE, value, follow_symlinks=False)
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            os.setxattr(os.path.join(directory, name), _ATTRIBUTE, value, follow_symlinks=False)
