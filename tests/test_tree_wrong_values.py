"""Every command of the tree with wrong values, from 16 processes at once: nothing stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from tests.support.filled import CONTAINER, TOP
from tests.support.trees import snapshot_tree

PROCESSES = 16
SECONDS = 120
WRONG = """
mkdir containers/made-by-podman | File exists
mkdir 'containers/b@d name' | Invalid argument
mkdir containers/.hidden | Invalid argument
mkdir containers/$(printf 'x%.0s' {1..300}) | File name too long
mkdir images/x:1 | Invalid argument
mkdir layers/.hidden | Invalid argument
mkdir layers/nothing/children/x | No such file or directory
mkdir trash/x | Operation not permitted
mkdir orphans/x | Operation not permitted
mkdir x | Operation not permitted
echo nothing > $C/from | No such file or directory
echo top:1 > $C/from | Directory not empty
rmdir containers/nothing | No such file or directory
rmdir images/localhost/top:1 | Device or resource busy
rmdir images/localhost | Directory not empty
rmdir layers/$BASE | Directory not empty
rmdir $C/userdata | Operation not permitted
$PYTHON -c "import os; os.rename('$C', 'containers/b@d')" | Invalid argument
$PYTHON -c "import os; os.rename('$C', 'images/x:1')" | Operation not permitted
mv -T $C layers/moved | Operation not permitted
mv -T layers/mine containers/moved | Operation not permitted
mv -T images/localhost/top:1 layers/moved | Operation not permitted
mv -T images/localhost/top:1 containers/moved | Operation not permitted
$PYTHON -c "import os; os.rename('images/localhost/top:1', 'images/localhost/base:1')" | File exists
$PYTHON -c "import os; os.rename('control', 'c')" | Operation not permitted
echo 'b@d name' > $C/names | Invalid argument
echo localhost/base:1 >> images/localhost/top:1/names | File exists
echo > $C/names | Invalid argument
echo 'Not Good' >> images/localhost/top:1/names | Invalid argument
ln -s nothing images/localhost/x:1 | No such file or directory
ln -sT top:1 images/localhost/base:1 | File exists
ln -s base:1 'images/localhost/Not Good' | Invalid argument
ln -s base:1 containers/x | Operation not permitted
ln $C/id containers/x | Operation not permitted
ln $C/id $C/rootfs/x | ~Invalid cross-device link
ln $C/rootfs/etc/hostname $C/x | ~Invalid cross-device link
mv -T $C/userdata containers/x | Operation not permitted
$PYTHON -c "import os; os.rename('$C/rootfs/etc/hostname', '$C/id')" | ~Invalid cross-device link
$PYTHON -c "import os; os.rename('$C/id', '$C/rootfs/x')" | ~Invalid cross-device link
rm images/localhost/top:1/id | Operation not permitted
mkdir $C/snapshots/one | File exists
mkdir $C/snapshots/.x | Invalid argument
rmdir $C/snapshots/nothing | No such file or directory
$PYTHON -c "import os; os.rename('$C/snapshots/one', '$C/snapshots/two')" | File exists
mv -T $C/snapshots/one containers/moved | Operation not permitted
mv -T $C/snapshots/one containers/other/snapshots/moved | Operation not permitted
mv -T trash/gone@* layers/moved | Operation not permitted
mv -T trash/gone@* containers/other/snapshots/moved | Operation not permitted
echo nothing > $C/rollback | No such file or directory
echo 'Not A Name' > $C/commit | Invalid argument
echo much > $C/limit | Invalid argument
echo -1 > $C/limit | Invalid argument
echo maybe > $C/on-write | Invalid argument
echo maybe > images/localhost/top:1/on-write | Invalid argument
printf 'a\\0b' > $C/metadata | Invalid argument
printf '\\377' > $C/metadata | Invalid argument
$PYTHON -c "open('$C/metadata', 'wb', 0).write(bytes(70000))" | File too large
echo x > $C/id | Operation not permitted
rm $C/big-data/nothing | No such file or directory
mkdir $C/big-data/x | Operation not permitted
cp README layers/mine/diff.tar | Invalid argument
cp $CUT layers/mine/diff.tar | Invalid argument
cp $CUT.gz layers/mine/diff.tar | Invalid argument
cp $CUT layers/$BASE/diff.tar | Directory not empty
cp README images/.import/x$$ | Invalid argument
cp $CUT images/.import/y$$ | Invalid argument
rm images/localhost/top:1/big-data/manifest | Device or resource busy
cp README $C/snapshots/one/rootfs/x | Read-only file system
cp README images/localhost/top:1/rootfs/x | Read-only file system
mv trash/nothing containers/x | No such file or directory
rmdir trash/nothing | No such file or directory
rmdir orphans/nothing | No such file or directory
echo everything > control/prune/preview | Invalid argument
echo nothing > control/prune/run | No such file or directory
touch containers/pinned/x | No such file or directory
touch $C/other | Operation not permitted
mkfifo $C/pinned | Operation not permitted
chmod 777 $C/id | Operation not permitted
setfattr -n user.x -v y $C/id | Operation not permitted
ls diff/nothing..top:1 | No such file or directory
"""


SILENT = ("No such file or directory", "File exists")
"""The kernel says these by itself, or asks for a name that is not there: neither needs a text. Nor does
what is marked ``~``: a tree's files cannot be linked or renamed across its border, and mv(1) copies then."""


def _after(before, now):
    """The lines of ``control/errors`` that are new; it keeps the last 64."""
    return now[now.index(before[-1]) + 1 :] if before and before[-1] in now else now


def _explains(line, expected):
    """Whether a line tells of that error in more words than the error's own."""
    _, name, why = line.partition(f" {_NAMES[expected]}: ")
    return bool(name) and why not in ("", expected)


_NAMES = {os.strerror(number): name for number, name in errno.errorcode.items()}


def _state(tree, dirs):
    """Everything that a command could leave half-made, in the tree and behind it."""
    container = tree.path / "containers" / CONTAINER
    found = {
        table: sorted(os.listdir(tree.path / table))
        for table in (
            "layers",
            "images",
            "images/localhost",
            "images/.import",
            "containers",
            "trash",
            "orphans",
        )
    }
    places = container, container / "snapshots", tree.path / "containers/other/snapshots"
    found |= {str(place): sorted(os.listdir(place)) for place in places}
    found |= {name: (container / name).read_text() for name in ("json", "from", "limit", "on-write")}
    found["names"] = (tree.path / "images" / TOP / "names").read_text()
    found["subvolumes"] = sorted(os.listdir(dirs.graphroot / "btrfs/subvolumes"))
    found["rootfs"] = snapshot_tree(container / "rootfs")
    found["layer"] = snapshot_tree(tree.path / "layers/mine/rootfs")
    return found


def test_wrong_values_from_many_processes_are_refused_and_leave_nothing(tree, store_dirs, btrfs_dir):
    container = tree.path / "containers" / CONTAINER
    for name in ("one", "two"):
        (container / "snapshots" / name).mkdir()
    (tree.path / "layers/mine").mkdir()
    for name in ("other", "gone"):
        (tree.path / "containers" / name).mkdir()
    (tree.path / "containers/gone").rmdir()
    cut = btrfs_dir / "cut.tar"
    (btrfs_dir / "hello").write_bytes(os.urandom(100_000))
    subprocess.run(["tar", "-C", btrfs_dir, "-cf", cut, "hello"], check=True)
    subprocess.run(
        f"gzip -c {cut} | head -c 50000 > {cut}.gz; truncate -s 50000 {cut}", shell=True, check=True
    )
    base = os.path.basename(os.readlink(tree.path / "images" / TOP / "layers/00"))
    env = os.environ | {"C": f"containers/{CONTAINER}", "CUT": str(cut), "BASE": base, "LC_ALL": "C"}
    env["PYTHON"] = f"{sys.executable} -I -S"  # without what it would import for nothing
    before = _state(tree, store_dirs)
    for line in WRONG.strip().splitlines():
        script, _, expected = line.rpartition(" | ")
        told = tree.errors().splitlines()
        for code, text in _at_once(script, tree.path, env):
            assert code != 0, script
            assert expected.lstrip("~") in text, script
        if expected not in SILENT and not expected.startswith("~"):
            assert any(_explains(line, expected) for line in _after(told, tree.errors().splitlines())), script
    assert _state(tree, store_dirs) == before
    assert sum(1 for _ in tree.errors().splitlines()) == 64


def _at_once(script, directory, env):
    processes = [
        subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {script}"],
            cwd=directory,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]
