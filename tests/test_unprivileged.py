"""fsd for an ordinary user: mounted by fusermount3, files by name, data by request."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import fsd
from tests.support.tools import StoreDirs

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parents[1]

SCENE = """
set -ex
mount --make-rprivate /
mount -t tmpfs -o mode=755 none /mnt
home=$PWD
cd /mnt
mkdir home python site code
mount --bind "$home" home
mount --bind "$BASE" python
mount --bind "$SITE" site
mount --bind "$CODE" code
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
exec setpriv --reuid $USER_ID --regid $USER_ID --clear-groups env -i PATH=/usr/bin:/bin HOME="$PWD/home" \\
    LD_LIBRARY_PATH="$PWD/python/lib" PYTHONPATH="$PWD/code:$PWD/site" PYTHONDONTWRITEBYTECODE=1 \\
    PYTHON="$PWD/python/bin/python$VERSION" bash -ec "$ACTS"
"""
"""A mount namespace in which an ordinary user reaches Python, the code and the FUSE device; then the acts."""

ACTS = """
cd "$HOME"
fsd() { "$PYTHON" -m fsd -g "$HOME/g" -R "$HOME/r" -s vfs "$@"; }
fsd up "$HOME/mnt" >&2 || { cat r/fsd/log >&2; exit 1; }
trap 'fsd down >&2' EXIT
findmnt -no FSTYPE,OPTIONS mnt
cat mnt/images/localhost/mine:1/rootfs/etc/hostname
mkdir mnt/containers/c
echo mine:1 > mnt/containers/c/from
echo changed > mnt/containers/c/rootfs/etc/hostname
cat mnt/containers/c/rootfs/etc/hostname
dd if=/dev/zero of=mnt/containers/c/rootfs/large bs=64k count=32 status=none
stat -c %s,%u mnt/containers/c/rootfs/large
if echo x > mnt/images/localhost/mine:1/rootfs/etc/hostname; then exit 3; fi
grep '^warn passthrough: off' mnt/control/health
rmdir mnt/containers/c
ls mnt/containers
fsd down >&2
trap - EXIT
! findmnt mnt
"""


@pytest.fixture
def home(btrfs_dir: Path) -> Path:
    """A user's directory with a vfs store of one image in it, all owned by the user."""
    home = btrfs_dir / "home"
    content = home / "content/etc"
    content.mkdir(parents=True)
    (content / "hostname").write_text("mine\n")
    (home / "mnt").mkdir()
    subprocess.run(["tar", "-C", content.parent, "-cf", home / "image.tar", "."], check=True)
    fsd(StoreDirs(home / "g", home / "r"), "-s", "vfs", "import", home / "image.tar", "localhost/mine:1")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
    return home


def test_an_ordinary_user_mounts_looks_and_writes(home: Path, require: Callable[[str], None]) -> None:
    require("fuse")
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SCENE],
        cwd=home,
        env=os.environ
        | {
            "BASE": sys.base_prefix,
            "SITE": sysconfig.get_path("purelib"),
            "CODE": str(REPOSITORY),
            "VERSION": f"{sys.version_info.major}.{sys.version_info.minor}",
            "USER_ID": str(NOBODY),
            "ACTS": ACTS,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("fuse.fsd")
    assert f"user_id={NOBODY}" in first
    assert rest[:3] == ["mine", "changed", f"{64 << 10 << 5},{NOBODY}"]
    assert rest[3].startswith("warn passthrough: off")
    assert len(rest) == 4
