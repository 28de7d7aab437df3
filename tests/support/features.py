"""What this machine can do, and what a test run insists on.

``FSD_REQUIRE=btrfs,fuse`` (or ``all``) turns the skip of a missing feature into a failure, so that a
continuous-integration run cannot pass by skipping.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


def _filesystem(name: str, *programs: str) -> bool:
    """Whether root can make and mount a file system of this kind."""
    if os.geteuid() != 0 or not all(map(shutil.which, programs)):
        return False
    if not _kernel_knows(name) and shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", name], check=False)
    return _kernel_knows(name)


def _kernel_knows(name: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as lines:
        return name in lines.read().split()


def _fuse() -> bool:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _program(*names: str) -> Callable[[], bool]:
    return lambda: os.geteuid() == 0 and all(map(shutil.which, names))


PROBES: dict[str, Callable[[], bool]] = {
    "btrfs": lambda: _filesystem("btrfs", "mkfs.btrfs", "btrfs", "losetup"),
    "fuse": _fuse,
    "overlay": lambda: _filesystem("overlay"),
    "xfs": lambda: _filesystem("xfs", "mkfs.xfs"),
    "podman": _program("podman", "crun", "conmon"),
    "buildah": _program("buildah"),
    "skopeo": _program("skopeo"),
    "containers-storage": _program("containers-storage"),
    "docker": _program("dockerd", "docker"),
    "groff": lambda: shutil.which("groff") is not None,
}


@functools.cache
def present(feature: str) -> bool:
    """Whether ``feature`` can be used here; ``KeyError`` for a feature nobody declared."""
    return PROBES[feature]()


def required() -> frozenset[str]:
    """Features named in ``FSD_REQUIRE``; ``all`` stands for every one."""
    words = frozenset(os.environ.get("FSD_REQUIRE", "").replace(",", " ").split())
    return frozenset(PROBES) if "all" in words else words


def require(feature: str) -> None:
    """Skip the calling test unless ``feature`` is present; fail it when the run insists on the feature."""
    if present(feature):
        return
    if feature in required():
        pytest.fail(f"{feature} is required by FSD_REQUIRE and not usable here", pytrace=False)
    pytest.skip(f"{feature} is not usable here")


def lacking(what: str) -> None:
    """Skip the calling test for something that has no name here; fail it when the run insists on all."""
    if "all" in os.environ.get("FSD_REQUIRE", "").split(","):
        pytest.fail(f"{what}, and FSD_REQUIRE asks for all", pytrace=False)
    pytest.skip(what)


def header() -> str:
    """One line for the top of a test run."""
    states = [f"{name}{'' if present(name) else ' (absent)'}" for name in PROBES]
    insisted = ", ".join(sorted(required())) or "nothing"
    return f"features: {', '.join(states)}; required: {insisted}"
