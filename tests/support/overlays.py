"""What the tests of the overlay driver share: drivers that are shut, chains of layers, small archives."""

from __future__ import annotations

import io
import tarfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.idmap import IDMap, IDMappings
from drivers.overlay import OverlayDriver
from drivers.overlay_mount import is_mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SHIFTED = IDMappings((IDMap(0, 200000, 65536),), (IDMap(0, 300000, 65536),))
MTIME = 1_700_000_000


@contextmanager
def opener() -> Iterator[Callable[..., OverlayDriver]]:
    """Opens drivers on a graphroot; their mounts are undone at the end."""
    with ExitStack() as stack:

        def open_driver(graphroot: Path, **options: str) -> OverlayDriver:
            driver = OverlayDriver(graphroot / "overlay", options)
            stack.callback(_shut, driver)
            return driver

        yield open_driver


def _shut(driver: OverlayDriver) -> None:
    for name in driver.layer_ids():
        while is_mounted(driver.home / name / "merged"):
            syscalls.umount(driver.home / name / "merged", syscalls.MNT_DETACH)
    driver.cleanup()


def chain(driver: OverlayDriver, *names: str) -> None:
    """Make layers one over another, the first a base."""
    for parent, name in zip((None, *names), names, strict=False):
        driver.create(name, parent)


def mountinfo() -> list[str]:
    """Lines of this process's mounts."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


def archive(*entries: tuple[str, Mapping[str, object]] | str) -> io.BytesIO:
    """A layer tar; a bare name is a directory if it ends in ``/``, else a small file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            name, fields = (entry, {}) if isinstance(entry, str) else entry
            _add(tar, name, dict(fields))
    out.seek(0)
    return out


def _add(tar: tarfile.TarFile, name: str, fields: dict[str, object]) -> None:
    member = tarfile.TarInfo(name.rstrip("/"))
    content = fields.pop("content", name.encode())
    assert isinstance(content, bytes)
    member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    member.mode, member.mtime = 0o755 if name.endswith("/") else 0o644, MTIME
    xattrs = fields.pop("xattrs", {})
    assert isinstance(xattrs, dict)
    member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    for field, value in fields.items():
        setattr(member, field, value)
    member.size = len(content) if member.isreg() else 0
    tar.addfile(member, io.BytesIO(content))
