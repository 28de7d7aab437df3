"""A tour of the whole tree in a shell on a store podman filled; and what other tools do in a tree."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.filled import BASE, CONTAINER, TOP
from tests.support.trees import snapshot_tree

SECONDS = 120
"""How long any one command may take; hanging is what the tests are about."""

IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
LAYER = """id names parent children used-by created metadata flags mount-label read-only diff-digest diff-size
    compressed-digest compressed-size compression uidmap gidmap mount-count size exclusive measured json path
    big-data changes diff.tar rootfs"""
IMAGE = """id names names-history digest digests created metadata size json layer layers mapped-layers
    containers big-data manifest.json config.json history changes rootfs oci image.tar on-write"""
OBJECT = """id names created metadata flags json image layer from big-data userdata rundata changes diff.tar
    size exclusive measured limit mount-count uidmap gidmap path rootfs snapshots rollback commit on-write"""
CONTROL = "status health metrics events errors locks config prune graph.svg graph.dot"
SNAPSHOT = "created reason changes rootfs"

TOUR = """
test "$(cat containers/made-by-podman/image/id)" = "$(cat images/localhost/top:1/id)"
test -L images/localhost/top:1/layers/00
test "$(ls images/localhost/top:1/layers | wc -l)" = 2
grep -q localhost/top:1 images/localhost/top:1/names
test "$(cat layers/*/children/*/id | sort -u | wc -l)" -ge 2
mkdir containers/web
ls containers/web/userdata containers/web/rundata
echo top:1 > containers/web/from
cat containers/web/rootfs/etc/hostname
echo changed > containers/web/rootfs/etc/hostname
test "$(cat containers/web/snapshots/*/reason)" = write
mkdir containers/web/snapshots/monday
echo again > containers/web/rootfs/etc/hostname
grep -qx 'C /etc/hostname' containers/web/snapshots/monday/changes
mv containers/web/snapshots/monday containers/web/snapshots/tuesday
echo tuesday > containers/web/rollback
test "$(cat containers/web/rootfs/etc/hostname)" = changed
rmdir containers/web/snapshots/tuesday
test "$(cat containers/web/snapshots/pre-rollback-*/rootfs/etc/hostname)" = again
tar -tf containers/web/diff.tar | grep -qx etc/hostname
cat diff/top:1..web/changes | grep -qx 'C /etc/hostname'
tar -xOf diff/top:1..web/diff.tar etc/hostname | grep -qx changed
echo localhost/web:1 > containers/web/commit
test "$(cat images/localhost/web:1/rootfs/etc/hostname)" = changed
ln -s web:1 images/localhost/web:stable
rm images/localhost/web:stable
mv images/localhost/web:1 images/localhost/web:2
echo localhost/web:3 >> images/localhost/web:2/names
test "$(cat images/localhost/web:3/id)" = "$(cat images/localhost/web:2/id)"
echo 'a note' > images/localhost/web:2/metadata
test "$(cat images/localhost/web:2/metadata)" = 'a note'
cp README images/localhost/web:2/big-data/readme
cmp README images/localhost/web:2/big-data/readme
rm images/localhost/web:2/big-data/readme
echo 100M > containers/web/limit
test "$(cat containers/web/limit)" = 104857600
echo 0 > containers/web/limit
touch containers/web/pinned
! rmdir containers/web
rm containers/web/pinned
mv containers/web containers/www
echo none > containers/www/on-write
mkdir layers/mine
cp "$SCRATCH/layer.tar" layers/mine/diff.tar
mkdir layers/mine/children/upper
gzip -c "$SCRATCH/layer.tar" > layers/upper/diff.tar
test "$(cat layers/upper/rootfs/hello)" = hello
rmdir layers/upper layers/mine
cp images/localhost/web:2/image.tar "$SCRATCH/image.tar"
rmdir containers/www
rmdir images/localhost/web:2
cp "$SCRATCH/image.tar" images/.import/web
test -d images/localhost/web:2
ls trash | grep -q '^www@'
grep -q ^container trash/www@*/what
mv trash/www@* containers/www
test "$(cat containers/www/rootfs/etc/hostname)" = changed
rmdir containers/www
rmdir trash/www@*
! ls trash | grep -q '^www@'
ls orphans broken
grep -q 'driver: btrfs' control/status control/health
grep -q fsd_objects control/metrics
grep -q '^quiet = 60 .*built-in' control/config
grep -q layers.lock control/locks
grep -q '<svg' control/graph.svg
grep -q digraph control/graph.dot
grep -q ^token: control/prune/preview
grep -q EBUSY control/errors
"""


def _run(*argv, **options):
    return subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, check=False, timeout=SECONDS, **options
    )


def test_tour_of_every_entry_and_command(tree, podman, btrfs_dir):
    (btrfs_dir / "hello").write_text("hello\n")
    _run("tar", "-C", btrfs_dir, "-cf", btrfs_dir / "layer.tar", "hello")
    for line in TOUR.strip().splitlines():
        done = _run("bash", "-c", line, cwd=tree.path, env=os.environ | {"SCRATCH": str(btrfs_dir)})
        assert done.returncode == 0, f"{line}\n{done.stderr}{tree.errors()}"
    assert podman("run", "--rm", "localhost/web:2", "cat", "/etc/hostname").returncode == 0
    podman("start", "--attach", CONTAINER)


def test_every_object_has_every_entry(tree):
    container = tree.path / "containers" / CONTAINER
    (container / "snapshots/one").mkdir()
    places = {
        tree.path / "images" / TOP / "layer": LAYER,
        tree.path / "images" / TOP: IMAGE,
        container: OBJECT,
        container / "snapshots/one": SNAPSHOT,
        tree.path / "control": CONTROL,
        tree.path / "control/prune": "preview run",
    }
    for place, entries in places.items():
        assert sorted(os.listdir(place)) == sorted(entries.split()), place


# -- other people's tools ----------------------------------------------------------------------

PLACES = {
    "root": ".",
    "table": "containers",
    "image": f"images/{TOP}",
    "layer": f"images/{BASE}/layer/",
    "container": f"containers/{CONTAINER}",
    "image rootfs": f"images/{TOP}/rootfs",
    "snapshots": f"containers/{CONTAINER}/snapshots",
    "trash": "trash",
    "control": "control",
}
TOOLS = {
    "ls -lR --color": ["ls", "-lR", "--color=always"],
    "find": ["find", ".", "-ls"],
    "du": ["du", "-s"],
    "df": ["df"],
    "grep -r": ["grep", "-rIs", "--exclude=events", "no such text anywhere"],
    "tar": ["tar", "--exclude=events", "-cf", "/dev/null"],
    "chmod -R": ["chmod", "-R", "0000"],
    "chown -R": ["chown", "-R", "12345"],
    "touch": ["touch"],
    "sed -i": ["sh", "-c", "sed -i s/o/x/ $0/id $0/etc/hostname $0"],
    "vim": ["sh", "-c", "for f in $0/id $0/etc/hostname; do vim -es -u NONE -c s/o/x/ -c wq -c q! $f; done"],
    "mv": ["sh", "-c", "mv $0/id $0/changed; mv $0 $SCRATCH/moved"],
    "cp": ["sh", "-c", "cp /etc/passwd $0/new"],
    "cp -a": ["sh", "-c", "cp -a $0 $SCRATCH/copy"],
    "rsync": ["sh", "-c", "rsync -a --exclude=events $0 $SCRATCH/rsync"],
    "rsync --delete": ["sh", "-c", "mkdir -p $SCRATCH/empty && rsync -a --delete $SCRATCH/empty/ $0"],
    "updatedb": ["sh", "-c", "updatedb -l 0 -o $SCRATCH/db -U $0"],
    "rm -r": ["rm", "-rf"],
    "find -delete": ["find", ".", "-delete"],
    "git": ["git", "init", "-q"],
}


@pytest.mark.parametrize("place", PLACES)
def test_tools_neither_hang_nor_lose_anything(tree, place, btrfs_dir):
    """Whatever a tool tries, every object and every byte below a ``rootfs`` is there afterwards."""
    container = tree.path / "containers" / CONTAINER
    rootfs = [tree.path / "images" / TOP / "rootfs", container / "rootfs"]
    (container / "snapshots/kept").mkdir()
    (tree.path / "containers/gone").mkdir()
    (tree.path / "containers/gone").rmdir()
    before = [snapshot_tree(path) for path in rootfs]
    listed = _everything(tree)
    (btrfs_dir / "scratch").mkdir()
    options = {"env": os.environ | {"SCRATCH": str(btrfs_dir / "scratch")}, "stdin": subprocess.DEVNULL}
    for tool, argv in TOOLS.items():
        if place in ("root", "table", "container") and tool in ("chmod -R", "chown -R", "git"):
            continue  # these may write there
        if place in ("root", "control") and tool in ("mv", "cp -a"):
            continue  # these wait for the next event
        where = tree.path / PLACES[place]
        target = [] if argv[0] == "find" else [f"{where}/"]
        done = _run(*argv, *target, cwd=where if argv[0] == "find" else "/", **options)
        if tool in ("ls -lR --color", "find", "du", "df"):
            assert (done.returncode, done.stderr) == (0, ""), tool
        if tool in ("rm -r", "find -delete", "git", "chmod -R"):
            assert done.returncode != 0, tool
        assert [snapshot_tree(path) for path in rootfs] == before, tool
        assert _everything(tree) == listed, tool


def _everything(tree):
    snapshots = f"containers/{CONTAINER}/snapshots"
    tables = ("images/localhost", "containers", "layers", "trash", "orphans", snapshots)
    found = {table: sorted(os.listdir(tree.path / table)) for table in tables}
    big_data = tree.path / "images" / TOP / "big-data"
    return found | {path.name: path.read_bytes() for path in big_data.iterdir()}


def test_editors_and_version_control_work_in_a_container(tree):
    rootfs = tree.path / "containers" / CONTAINER / "rootfs"
    commands = [
        ["sed", "-i", "s/fsd/edited/", rootfs / "etc/hostname"],
        ["cp", "-a", rootfs / "etc", rootfs / "copy"],
        ["mv", rootfs / "copy", rootfs / "moved"],
        ["git", "init", "-q", rootfs / "repo"],
        ["git", "-C", rootfs / "repo", *IDENTITY, "commit", "-q", "--allow-empty", "-m", "x"],
        ["chmod", "-R", "u+w", rootfs / "moved"],
        ["tar", "-C", rootfs, "-cf", rootfs / "all.tar", "etc"],
        ["rm", "-r", rootfs / "moved"],
        ["find", rootfs / "repo", "-delete"],
    ]
    for argv in commands:
        done = _run(*argv)
        assert done.returncode == 0, done.stderr
    assert (rootfs / "etc/hostname").read_text() == "edited-test\n"
    assert not (rootfs / "moved").exists()
    assert not (rootfs / "repo").exists()


@pytest.mark.parametrize(
    ("entry", "value", "errno"),
    [
        ("from", "nothing", "No such file"),
        ("rollback", "nothing", "No such file"),
        ("commit", "Not A Name", "Invalid argument"),
        ("limit", "much", "Invalid argument"),
        ("on-write", "maybe", "Invalid argument"),
        ("names", "b@d name", "Invalid argument"),
        ("id", "x", "Operation not permitted"),
        ("metadata", "\\0", "Invalid argument"),
    ],
)
def test_wrong_values_from_many_processes_change_nothing(tree, entry, value, errno):
    place = tree.path / "containers" / CONTAINER
    before = (place / "json").read_text()
    script = f"printf '{value}\\n' > {place / entry}"
    processes = [
        subprocess.Popen(["bash", "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(16)
    ]
    for process in processes:
        _, text = process.communicate(timeout=SECONDS)
        assert process.returncode != 0
        assert errno in text
    assert (place / "json").read_text() == before
