"""A small root filesystem that runs, with one of everything a container store must keep."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

APPLETS = ("cat", "echo", "id", "ls", "mkdir", "mv", "rm", "sh", "sleep", "stat", "touch", "true")
MTIME = 1_700_000_000


def build_rootfs_tar(path: Path) -> Path:
    """Write the archive: static busybox and applets, passwd, a setuid file, hard link, symlinks, an xattr."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("bin", "etc", "root", "srv", "tmp", "usr", "usr/share", "var"):
            _add(archive, name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        _add(archive, "bin/busybox", busybox, mode=0o755)
        for applet in APPLETS:
            _add(archive, f"bin/{applet}", kind=tarfile.SYMTYPE, target="busybox", mode=0o777)
        _add(archive, "bin/su", b"#!/bin/sh\nexec sh\n", mode=0o4755)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n")
        _add(archive, "etc/group", b"root:x:0:\nweb:x:33:\n")
        _add(archive, "etc/hostname", b"fsd-test\n")
        _add(archive, "etc/hostname.link", kind=tarfile.LNKTYPE, target="etc/hostname")
        _add(archive, "etc/os-release", b'NAME="fsd test"\nID=fsd-test\n')
        _add(archive, "srv/owned", b"by web\n", mode=0o640, owner=33)
        _add(archive, "srv/labelled", b"with xattr\n", xattrs={"user.fsd.test": "value"})
        _add(archive, "srv/gr\u00fc\u00dfe", b"non-ASCII name\n")
        _add(archive, "srv/empty")
    return path


def _add(
    archive: tarfile.TarFile,
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    owner: int = 0,
    target: str = "",
    xattrs: dict[str, str] | None = None,
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, target
    member.uid = member.gid = owner
    member.size, member.mtime = len(content), MTIME
    member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    archive.addfile(member, io.BytesIO(content))
