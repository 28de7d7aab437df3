"""Write a root filesystem made of Debian's static busybox to standard output, as a tar.

``busybox_rootfs.py | fsd import - localhost/busybox:latest`` gives an image that podman runs.
"""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "sys": 0o555,
    "tmp": 0o1777,
}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "busybox\n",
    "etc/os-release": 'NAME="busybox"\nID=busybox\n',
}


def add(archive: tarfile.TarFile, name: str, mode: int, content: bytes | None = None, link: str = "") -> None:
    """Add a symbolic link, a file, or (without content) a directory; owned by root, dated like busybox."""
    member = tarfile.TarInfo(name)
    member.mode, member.mtime, member.linkname = mode, int(BUSYBOX.stat().st_mtime), link
    member.type = tarfile.SYMTYPE if link else tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    member.size = len(content or b"")
    archive.addfile(member, io.BytesIO(content or b""))


def main() -> int:
    """Write the archive."""
    if not BUSYBOX.exists():
        print(f"{BUSYBOX} is missing: apt install busybox-static", file=sys.stderr)
        return 1
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in DIRECTORIES.items():
            add(archive, name, mode)
        for name, text in FILES.items():
            add(archive, name, 0o644, text.encode())
        add(archive, "bin/busybox", 0o755, BUSYBOX.read_bytes())
        for applet in sorted(set(applets) - {"busybox"}):
            add(archive, f"bin/{applet}", 0o777, link="busybox")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
