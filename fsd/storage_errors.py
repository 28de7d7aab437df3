"""What containers-storage prints for the store's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.errors import (
    BadOption,
    DriverError,
    MalformedArchive,
    NotSupported,
    PrerequisitesMissing,
    SeveralDrivers,
)
from store.errors import StoreError

if TYPE_CHECKING:
    from store.config import StoreOptions

_UNKNOWN_OPTION = {
    "btrfs": "unknown option {}",
    "vfs": "vfs driver does not support {} options",
    "overlay": "overlay: Unknown option {}",
}
EXPECTED = (StoreError, DriverError, OSError)


def text_of(error: Exception, *, call: str = "open") -> str:
    """The text of an error as containers-storage words it, as far as that tool knows it.

    Args:
        call: the system call that failed, where it is an ``OSError``.
    """
    if isinstance(error, StoreError):
        return error.original or str(error)
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename if isinstance(error.filename, str) else str(error.filename or "")
        return f"{call} {name}: {reason(error)}" if name else reason(error)
    return str(error)


def archive_text(error: MalformedArchive, driver: str) -> str:
    """Why a layer archive cannot be unpacked; the original's drivers word it differently."""
    why = "unexpected EOF" if "truncated" in str(error) else str(error)
    if "cannot be mapped" in why:
        why = why.rpartition(": ")[2]
    if driver == "overlay":
        return f"processing tar file({why}): exit status 1"
    return f"ApplyLayer stdout:  stderr: {why} exit status 1"


def reason(error: OSError) -> str:
    """The system's text for an error, in lower case as Go has it."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def opening_text(error: Exception, options: StoreOptions) -> str:
    """Why a store cannot be opened."""
    if isinstance(error, OSError):
        return text_of(error, call="mkdir")
    if isinstance(error, SeveralDrivers):
        from pathlib import Path

        from drivers import prior_drivers

        found = ", ".join(sorted(name for name in prior_drivers(Path(options.graphroot)) if name != "vfs"))
        return (
            f"{options.graphroot} contains several valid graphdrivers: {found}; "
            "Please cleanup or explicitly choose storage driver (-s <DRIVER>)"
        )
    if isinstance(error, BadOption):
        return _bad_option(error, options)
    if isinstance(error, NotSupported) and options.driver not in ("btrfs", "overlay", "vfs"):
        return f"failed to GetDriver graph {options.driver} {options.graphroot}: driver not supported"
    if isinstance(error, PrerequisitesMissing):
        return _no_prerequisites(error, options)
    return text_of(error)


def _bad_option(error: BadOption, options: StoreOptions) -> str:
    for option in options.driver_options:
        if "=" not in option:
            return f"unable to parse key/value option: {option}"
        key = option.partition("=")[0]
        if key in str(error) and (text := _UNKNOWN_OPTION.get(options.driver)):
            return text.format(key)
    return str(error)


def _no_prerequisites(error: PrerequisitesMissing, options: StoreOptions) -> str:
    if "not on a btrfs" in str(error) or "is not btrfs" in str(error) or options.driver == "btrfs":
        home = f"{options.graphroot}/btrfs"
        return (
            f'"{home}" is not on a btrfs filesystem: '
            "prerequisites for driver not satisfied (wrong filesystem?)"
        )
    return str(error)
