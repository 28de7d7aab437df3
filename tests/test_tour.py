"""A tour of the whole tree in a shell, on a store podman filled and uses afterwards."""

from __future__ import annotations

import os
import subprocess

from tests.support.filled import CONTAINER, TOP

SECONDS = 120
"""How long any one command may take; hanging is what the tests are about."""

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
ls "images/top:1/id" "images/sha256:$(cat images/localhost/top:1/id)/id"
ls "images/$(cut -c1-12 images/localhost/top:1/id)/id" "images/$(cat images/localhost/top:1/digest)/id"
cd "containers/$(cut -c1-12 containers/made-by-podman/id)" && grep -qx made-by-podman names
mkdir containers/web
ls containers/web/userdata containers/web/rundata
echo top:1 > containers/web/from
cat containers/web/rootfs/etc/hostname
echo changed > containers/web/rootfs/etc/hostname
test "$(cat containers/web/snapshots/*/reason)" = write
echo mine > containers/web/userdata/note
mkdir containers/web/snapshots/monday
echo again > containers/web/rootfs/etc/hostname
grep -qx 'C /etc/hostname' containers/web/snapshots/monday/changes
grep -qx 'C /etc/hostname' diff/web@monday..web/changes
mkdir containers/copy && echo web/snapshots/monday > containers/copy/from
test "$(cat containers/copy/rootfs/etc/hostname)" = changed
mkdir containers/twin && echo web > containers/twin/from
test "$(cat containers/twin/rootfs/etc/hostname)" = again
mkdir containers/base && basename "$(readlink images/localhost/top:1/layers/00)" > containers/base/from
rmdir containers/copy containers/twin containers/base
mv containers/web/snapshots/monday containers/web/snapshots/tuesday
touch containers/web/snapshots/tuesday/pinned
! rmdir containers/web/snapshots/tuesday
rm containers/web/snapshots/tuesday/pinned
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
getfattr --only-values -n user.fsd.error containers | grep -q 'pinned'
mv containers/web containers/www
echo none > containers/www/on-write
mkdir layers/mine
cp "$SCRATCH/layer.tar" layers/mine/diff.tar
mkdir layers/mine/children/upper
gzip -c "$SCRATCH/layer.tar" > layers/upper/diff.tar
test "$(cat layers/upper/rootfs/hello)" = hello
rmdir layers/upper layers/mine
mkdir "layers/$(printf %064d 7)" && rmdir "layers/$(printf %064d 7)"
echo draft > images/localhost/web:2/on-write
echo drafted > images/localhost/web:2/rootfs/etc/hostname
test "$(cat images/localhost/web:2/rootfs/etc/hostname)" = drafted
echo localhost/web:drafted > containers/*draft*/commit
test "$(cat images/localhost/web:2/rootfs/etc/hostname)" = changed
test "$(cat images/localhost/web:drafted/rootfs/etc/hostname)" = drafted
rmdir images/localhost/web:drafted
ls containers | grep draft | (cd containers && xargs -r rmdir)
tar -tf images/localhost/web:2/image.tar | grep -q manifest.json
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
echo expired-trash > control/prune/preview
sed -n 's/^token: //p' control/prune/preview > control/prune/run
(timeout 20 head -n 1 control/events > "$SCRATCH/event" & sleep 0.3; mkdir containers/told; wait)
grep -q '"create"' "$SCRATCH/event"
rmdir containers/told
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


def test_tour_of_every_entry_and_command(tree, podman, skopeo, btrfs_dir):
    (btrfs_dir / "hello").write_text("hello\n")
    _run("tar", "-C", btrfs_dir, "-cf", btrfs_dir / "layer.tar", "hello")
    for line in TOUR.strip().splitlines():
        done = _run("bash", "-c", line, cwd=tree.path, env=os.environ | {"SCRATCH": str(btrfs_dir)})
        assert done.returncode == 0, f"{line}\n{done.stderr}{tree.errors()}"
    assert podman("run", "--rm", "localhost/web:2", "cat", "/etc/hostname").returncode == 0
    assert "web:2" in podman("load", "-i", tree.path / "images/localhost/web%3A2/image.tar").stdout
    skopeo("copy", f"oci:{tree.path}/images/{TOP}/oci", f"dir:{btrfs_dir}/copied")
    podman("start", "--attach", CONTAINER)
    (tree.path / "containers" / CONTAINER / "snapshots/last").mkdir()
    podman("rm", CONTAINER)
    (orphan,) = (tree.path / "orphans").iterdir()
    orphan.rmdir()
    assert os.listdir(tree.path / "orphans") == []


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
