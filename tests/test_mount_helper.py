"""``mount -t fuse.fsd`` through the helper that mount(8) runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fsd.mount_helper import Refused, command_line
from tests.support import loops
from tests.support.daemon import fsd, fsd_env
from tests.support.features import require
from tests.support.tools import StoreDirs

MOUNT = """\
set -e
mount -t overlay overlay -o "lowerdir=$1:/usr/sbin" /usr/sbin
mount -t fuse.fsd "$2" "$3" -o "runroot=$4,noexec,nosuid,noauto,x-systemd.automount"
trap 'umount "$3"' EXIT
cat "$3/images/localhost/small:1/rootfs/etc/hostname"
findmnt -n -o FSTYPE "$3"
"""


def test_mount_runs_the_helper_and_umount_ends_it(btrfs_root, rootfs_tar, tmp_path):
    require("fuse")
    home = btrfs_root / "helper"
    home.mkdir()
    dirs = StoreDirs(home / "g", home / "r")
    dirs.graphroot.mkdir()
    try:
        fsd(dirs, "import", rootfs_tar, "localhost/small:1")
        (home / "mnt").mkdir()
        (tmp_path / "bin").mkdir()
        helper = tmp_path / "bin/mount.fuse.fsd"
        helper.write_text(f'#!/bin/sh\nexec {sys.executable} -m fsd.mount_helper "$@"\n')
        helper.chmod(0o755)
        shell = ["sh", "-c", MOUNT, "mount-test", helper.parent, dirs.graphroot, home / "mnt", dirs.runroot]
        done = subprocess.run(  # /usr/sbin has the helper in a mount namespace of the test's own alone
            ["unshare", "--mount", "--propagation", "slave", *shell],
            env=fsd_env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (0, "fsd-test\nfuse.fsd\n"), done.stderr
    finally:
        fsd(dirs, "down", "--force", check=False)
        loops.delete_tree(btrfs_root, home)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fsd", "/mnt"], ["up", "/mnt"]),
        (["none", "/mnt", "-o", "rw,nodev,user=me,_netdev,x-a.b=c"], ["up", "/mnt"]),
        (
            ["/g", "/mnt", "-sn", "-o", "runroot=/r,allow_other"],
            ["up", "--graph", "/g", "--run", "/r", "--allow-other", "/mnt"],
        ),
        (
            ["fsd", "/mnt", "-o", "graphroot=/g,imagestore=/i"],
            ["up", "--graph", "/g", "--imagestore", "/i", "/mnt"],
        ),
        (["fsd", "/mnt", "-f"], None),
    ],
)
def test_arguments_of_mount_become_those_of_up(argv, words):
    assert command_line(argv) == words


@pytest.mark.parametrize(
    "argv", [["fsd"], ["fsd", "/mnt", "-o"], ["fsd", "/mnt", "-o", "ro"], ["a", "/b", "-o", "what"]]
)
def test_what_cannot_be_done_is_refused(argv):
    with pytest.raises(Refused):
        command_line(argv)
