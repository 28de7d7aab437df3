"""What is copied, linked and moved into a mounted tree: layers, images, names, big data."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from tests.support.filled import BASE, CONTAINER, TOP, errname_of, eventually, write
from tests.support.mounted import Mounted, mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs

ID = "ab" * 32


@pytest.fixture
def empty(store_dirs: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    require("fuse")
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        yield serving


def _tar(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


# -- layers ------------------------------------------------------------------------------------


def test_mkdir_of_a_layer_by_name_id_and_parent(empty, containers_storage):
    layers = empty.path / "layers"
    (layers / "mine").mkdir()
    (layers / ID).mkdir()
    (layers / "mine/children/upper").mkdir()
    assert sorted(os.listdir(layers)) == sorted(["mine", ID, "upper"])
    assert os.path.samefile(layers / "upper/parent", layers / "mine")
    assert os.path.samefile(layers / "mine/children/upper", layers / "upper")
    assert (layers / ID / "id").read_text() == f"{ID}\n"
    assert ID in containers_storage("layers").stdout
    assert errname_of(os.mkdir, layers / "mine") == "EEXIST"
    assert errname_of(os.mkdir, layers / ".hidden") == "EINVAL"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_cp_of_a_layer_archive_fills_the_layer(empty, btrfs_dir, containers_storage, pack):
    layers = empty.path / "layers"
    (layers / "mine").mkdir()
    data = _tar(hello="hi there\n")
    (btrfs_dir / "layer.tar").write_bytes(pack(data))
    subprocess.run(["cp", btrfs_dir / "layer.tar", layers / "mine/diff.tar"], check=True)
    assert (layers / "mine/rootfs/hello").read_text() == "hi there\n"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (layers / "mine/diff-digest").read_text() == f"{digest}\n"
    assert (layers / "mine/diff.tar").read_bytes() == data
    (layers / "mine/children/upper").mkdir()
    upper = _tar(**{"other": "x", ".wh.hello": ""})
    (btrfs_dir / "upper.tar").write_bytes(pack(upper))
    subprocess.run(
        f"cat {btrfs_dir}/upper.tar > {layers}/mine/children/upper/diff.tar", shell=True, check=True
    )
    assert os.listdir(layers / "upper/rootfs") == ["other"]
    assert (layers / "upper/changes").read_text() == "D /hello\nA /other\n"
    assert containers_storage("check", check=False).stderr.count("error") == 0
    assert errname_of(write, layers / "mine/diff.tar", "x") == "ENOTEMPTY"


def test_layer_archive_written_in_pieces_by_several_processes_is_whole(empty, btrfs_dir):
    (empty.path / "layers/mine").mkdir()
    data = _tar(a="1" * 5000, b="2" * 5000)
    (btrfs_dir / "1").write_bytes(data[:6000])
    (btrfs_dir / "2").write_bytes(data[6000:])
    script = f"(cat {btrfs_dir}/1; /bin/true; cat {btrfs_dir}/2) > {empty.path}/layers/mine/diff.tar"
    subprocess.run(["sh", "-c", script], check=True)
    assert sorted(os.listdir(empty.path / "layers/mine/rootfs")) == ["a", "b"]
    assert (empty.path / "layers/mine/diff.tar").read_bytes() == data


def test_failed_copy_of_a_layer_archive_leaves_nothing(empty, btrfs_dir, store_dirs):
    layer = empty.path / "layers/mine"
    layer.mkdir()
    before = sorted(os.listdir(store_dirs.graphroot / "btrfs/subvolumes"))
    bad = _tar(**{"good": "x", "../../evil": "y"})
    half = gzip.compress(_tar(good="x" * 100_000))[:-40]
    between = _tar(good="x")[:1024]  # one whole entry, and no end
    for data in (bad[:700], half, b"no tar at all" * 100, between, between + bytes(512)):
        (btrfs_dir / "bad").write_bytes(data)
        done = subprocess.run(["cp", btrfs_dir / "bad", layer / "diff.tar"], capture_output=True, check=False)
        assert done.returncode == 1, data[:20]
        assert os.listdir(layer / "rootfs") == []
        assert (layer / "diff-digest").read_text() == ""
    assert sorted(os.listdir(store_dirs.graphroot / "btrfs/subvolumes")) == before
    assert "EINVAL" in empty.errors()
    (btrfs_dir / "good").write_bytes(_tar(good="x"))
    subprocess.run(["cp", btrfs_dir / "good", layer / "diff.tar"], check=True)
    assert os.listdir(layer / "rootfs") == ["good"]


def test_layers_in_use_take_no_archive(tree):
    for layer in (tree.path / "images" / BASE / "layer", tree.path / "containers" / CONTAINER / "layer"):
        assert errname_of(write, layer / "diff.tar", "x") == "ENOTEMPTY"


# -- images ------------------------------------------------------------------------------------


def test_cp_of_an_image_archive_loads_it(tree, podman, btrfs_dir):
    imports = tree.path / "images/.import"
    for kind, form in (("d.tar", "docker-archive"), ("o.tar", "oci-archive")):
        podman("save", "--format", form, "-o", btrfs_dir / kind, BASE)
    identity = (tree.path / "images" / BASE / "id").read_text()
    podman("rm", CONTAINER)
    podman("rmi", TOP, BASE)
    assert eventually(lambda: not (tree.path / "images" / BASE).exists())
    subprocess.run(["cp", "-p", btrfs_dir / "d.tar", f"{imports}/"], check=True)
    assert (tree.path / "images" / BASE / "id").read_text() == identity
    podman("run", "--rm", BASE, "true")
    (tree.path / "images" / BASE).rmdir()
    subprocess.run(f"gzip -c {btrfs_dir}/o.tar > {imports}/packed", shell=True, check=True)
    assert (tree.path / "images" / BASE / "id").read_text() == identity
    assert ".import" not in os.listdir(tree.path / "images")
    assert os.listdir(imports) == []


def test_import_of_something_else_fails_and_leaves_nothing(tree, btrfs_dir):
    before = sorted(os.listdir(tree.path / "layers"))
    (btrfs_dir / "bad").write_bytes(_tar(hello="x"))
    done = subprocess.run(
        ["cp", btrfs_dir / "bad", tree.path / "images/.import/x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "neither index.json nor manifest.json" in tree.errors()
    whole = (tree.path / "images" / BASE / "image.tar").read_bytes()
    cut = whole[: (len(whole.rstrip(b"\0")) + 511 & -512) + 512]
    (tree.path / "layers/mine").mkdir()
    for number, data in enumerate((cut, gzip.compress(cut), lzma.compress(cut))):
        (btrfs_dir / "cut").write_bytes(data)
        for place in (f"images/.import/x{number}", "layers/mine/diff.tar"):
            done = subprocess.run(["cp", btrfs_dir / "cut", tree.path / place], check=False)
            assert done.returncode == 1
            assert "the archive has no end" in tree.errors().splitlines()[-1]
    (tree.path / "layers/mine").rmdir()
    assert sorted(os.listdir(tree.path / "layers")) == before


def test_import_by_rsync_is_loaded_and_leaves_no_temporary_name(tree, btrfs_dir):
    (btrfs_dir / "image.tar").write_bytes((tree.path / "images" / BASE / "image.tar").read_bytes())
    (btrfs_dir / "bad.tar").write_bytes(_tar(hello="x"))
    for archive, loads in (("bad.tar", False), ("image.tar", True)):
        into = tree.path / "images/.import"
        done = subprocess.run(
            ["rsync", "-a", btrfs_dir / archive, f"{into}/"], capture_output=True, check=False
        )
        assert (done.returncode == 0) is loads, done.stderr
        assert os.listdir(into) == []
    assert "upload:" not in (tree.path / "control/status").read_text()


def test_an_image_keeps_what_it_cannot_do_without(tree, podman):
    place = tree.path / "images" / TOP / "big-data"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "note").write_text("mine")
    done = subprocess.run(["rm", "-rf", place], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "cannot be used without 'manifest'" in tree.errors()
    after = {path.name: path.read_bytes() for path in place.iterdir()}
    assert after == {name: data for name, data in before.items() if not name.startswith("signature-")}
    podman("image", "inspect", TOP)


def test_import_shows_in_status_while_it_is_written(tree):
    with open(tree.path / "images/.import/slow", "wb", buffering=0) as file:
        file.write(bytes(512))
        status = (tree.path / "control/status").read_text()
        assert "upload: images/.import/slow: 512 bytes, receiving" in status
        assert os.listdir(tree.path / "images/.import") == ["slow"]
        with pytest.raises(OSError, match="Errno 22"):
            file.close()
    assert "upload:" not in (tree.path / "control/status").read_text()


# -- names -------------------------------------------------------------------------------------


def test_ln_adds_a_tag_and_rm_takes_it_away(tree, podman):
    images = tree.path / "images"
    os.symlink("base:1", images / "localhost/extra:2")
    os.symlink(images / BASE, images / "third:3")
    subprocess.run(["mkdir", "-p", images / "quay.io/someone"], check=True)
    os.symlink("top:1", images / "quay.io/someone/x:4")
    for name, image in (
        ("localhost/extra:2", BASE),
        ("localhost/third:3", BASE),
        ("quay.io/someone/x:4", TOP),
    ):
        assert podman("image", "exists", name).returncode == 0
        assert os.path.samefile(images / name, images / image)
    assert (images / BASE / "names").read_text().split() == [BASE, "localhost/extra:2", "localhost/third:3"]
    (images / "localhost/extra:2").unlink()
    assert podman("image", "exists", "localhost/extra:2", check=False).returncode == 1
    assert podman("image", "exists", BASE).returncode == 0
    assert errname_of(os.symlink, "nothing", images / "localhost/y:1") == "ENOENT"
    assert errname_of(os.symlink, "base:1", images / "localhost/top:1") == "EEXIST"
    assert errname_of(os.symlink, "base:1", images / "localhost/Not Good") == "EINVAL"
    assert errname_of(os.unlink, images / (images / BASE / "id").read_text()[:12]) == "EPERM"
    assert errname_of(os.symlink, "base:1", tree.path / "containers/x") == "EPERM"


def test_mv_of_an_image_renames_it_across_directories(tree, podman):
    images = tree.path / "images"
    os.rename(images / BASE, images / "localhost/base:2")
    assert podman("image", "exists", "localhost/base:2").returncode == 0
    (images / "quay.io").mkdir()
    os.rename(images / "localhost/base:2", images / "quay.io/base:3")
    assert (images / "quay.io/base:3/names").read_text() == "quay.io/base:3\n"
    assert errname_of(os.rename, images / TOP, images / "quay.io/Bad Name") == "EINVAL"
    assert podman("image", "exists", TOP).returncode == 0


# -- big data ----------------------------------------------------------------------------------


def test_big_data_is_set_replaced_and_removed(tree, containers_storage, btrfs_dir):
    (btrfs_dir / "f").write_bytes(b"\x00binary\xff" * 1000)
    for place in (tree.path / "images" / TOP, tree.path / "containers" / CONTAINER, tree.path / "layers"):
        if place.name == "layers":
            (place / "mine").mkdir()
            place = place / "mine"
        data = place / "big-data"
        before = set(os.listdir(data))
        subprocess.run(["cp", btrfs_dir / "f", data / "my key%2Fpart"], check=True)
        assert (data / "my key%2Fpart").read_bytes() == b"\x00binary\xff" * 1000
        assert (data / "my key%2Fpart").stat().st_size == 8000
        write(data / "my key%2Fpart", "short\n")
        assert (data / "my key%2Fpart").read_text() == "short\n"
        assert set(os.listdir(data)) == before | {"my key%2Fpart"}
        (data / "my key%2Fpart").unlink()
        assert set(os.listdir(data)) == before
        assert errname_of(os.unlink, data / "my key%2Fpart") == "ENOENT"
    write(tree.path / "images" / TOP / "big-data/note", "hello")
    assert containers_storage("get-image-data", TOP, "note").stdout == "hello"


def test_big_data_that_cannot_be_read_is_not_open_for_writing_either(tree, filled):
    item = tree.path / "images" / TOP / "big-data/note"
    write(item, "hello")
    (kept,) = filled.graphroot.glob("*-images/*/note")
    kept.unlink()
    assert errname_of(os.open, item, os.O_RDWR | os.O_TRUNC) == "ENOENT"
    assert "upload:" not in (tree.path / "control/status").read_text()
