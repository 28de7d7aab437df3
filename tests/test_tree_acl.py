"""Synthetic entries have no access lists; the owner is told so in the way that lets ls stop asking."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import errno_of, eventually
from tests.support.mounted import Mounted, mounted
from tests.support.posix import as_user_in
from tests.support.rootfs_samples import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
LAYERS = 40
COPIES = {
    "ls": "ls -la . > {copy}/ls",
    "cp": "cp -a id {copy}/cp && cp -a big-data {copy}/cp-d",
    "rsync": "rsync -aAX id metadata {copy}",
    "tar": "tar --acls --xattrs -cf {copy}/tar id metadata used-by",
    "getfacl": "getfacl -p id . > {copy}/getfacl",
    "install": "install -m 600 id {copy}/install",
}
"""Commands that ask for access lists, or try to keep them."""
LOOK = """
import errno
looked = 0
for path, names, files in os.walk("."):
    names[:] = [name for name in names if name != "rootfs"]
    for name in files:
        file = os.path.join(path, name)
        if not os.path.islink(file):
            if name in ("changes", "diff.tar"):  # what a rootfs keeps from others is in them
                assert not os.access(file, os.R_OK)
            else:
                assert len(open(file).read()) >= 0 and os.access(file, os.R_OK)
            looked += 1
            assert not os.access(file, os.W_OK) and not os.access(file, os.X_OK)
            for what in ("access", "default"):
                try:
                    os.getxattr(file, "system.posix_acl_" + what)
                except OSError as e:
                    assert e.errno == errno.ENODATA, e
            try:
                open(file, "a")
            except OSError as e:
                assert e.errno == errno.EACCES, e
    assert os.access(path, os.R_OK | os.X_OK) and not os.access(path, os.W_OK)
print(looked)
"""


@pytest.fixture
def tree(store_dirs: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    """A mounted store with some layers, which everybody may look into."""
    require("fuse")
    with mounted(store_dirs, btrfs_dir / "mnt", "--allow-other", "yes") as serving:
        for number in range(LAYERS):
            (serving.path / f"layers/l{number}").mkdir()
        yield serving


def list_all(top: Path) -> str:
    return run("ls", "-lR", "-I", "rootfs", top).stdout


def asked_for_xattrs(tree: Mounted) -> int:
    text = (tree.path / "control/metrics").read_text()
    return sum(map(int, re.findall(r'^fsd_requests_total\{opcode="22"\} (\d+)', text, re.MULTILINE)))


def test_ls_stops_asking_for_access_lists_at_the_first_file(tree):
    def stops() -> bool:
        (tree.path / "layers/l0/metadata").write_text("new")  # nothing is remembered
        before = asked_for_xattrs(tree)
        list_all(tree.path / "layers")
        return asked_for_xattrs(tree) - before < 4 * LAYERS

    assert eventually(stops)


def test_everybody_but_the_owner_is_told_that_there_is_no_access_list(tree):
    layers = tree.path / "layers"
    for _ in range(2):
        assert int(as_user_in(layers, LOOK)) > 20 * LAYERS
        assert "+" not in {line[10:11] for line in list_all(layers).splitlines()}


def test_owner_is_told_of_files_that_access_lists_are_not_supported(tree):
    layer = tree.path / "layers/l1"
    list_all(layer)
    assert errno_of(os.getxattr, layer / "metadata", ACCESS) in (errno.EOPNOTSUPP, errno.ENODATA)
    for attribute in (ACCESS, DEFAULT):
        assert errno_of(os.getxattr, layer, attribute) == errno.ENODATA
    assert errno_of(os.getxattr, layer / "metadata", "user.other") == errno.ENODATA
    assert errno_of(os.setxattr, layer / "metadata", ACCESS, b"") != 0
    assert errno_of(os.chmod, layer / "metadata", 0o777) == errno.EPERM


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("user", [0, 1234])
def test_tools_that_keep_access_lists_copy_synthetic_files(tree, name, user):
    list_all(tree.path / "layers/l0")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as copy:  # other users cannot get to the tests' own
        os.chown(copy, user, user)
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "bash", "-ec"]
        command = COPIES[name].format(copy=copy)
        done = subprocess.run(
            [*argv, command], cwd=tree.path / "layers/l0", capture_output=True, text=True, check=False
        )
        assert not done.stderr
        assert done.returncode == 0
        assert os.listdir(copy)


def test_access_lists_of_a_rootfs_are_marked_by_ls_in_it(tree):
    """``..`` is synthetic, and seen before any file."""
    (tree.path / "containers/c").mkdir()
    rootfs = tree.path / "containers/c/rootfs"
    (rootfs / "listed").touch()
    list_all(tree.path / "containers")
    run("setfacl", "-m", "u:1234:r", rootfs / "listed")
    for options in ("-l", "-la"):
        assert "-rw-r--r--+" in run("ls", options, rootfs).stdout
