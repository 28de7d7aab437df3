"""Images as OCI layouts and docker-archives that skopeo, podman and we ourselves read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from drivers.errors import IntegrityError
from store.commit import commit
from store.errors import BadRecord, ImageUnknown, SizeUnknown
from store.layout import docker_archive, oci_layout
from store.oci import import_rootfs


@pytest.fixture
def image(store, rootfs_tar):
    """Two layers, the second from a container's changes."""
    with open(rootfs_tar, "rb") as archive:
        base = import_rootfs(store, archive, "base")
    container = store.create_container(names=["c"], image=base.id)
    (store.driver.get(container.layer) / "added").write_text("x" * 100_000)
    return commit(store, "c", "two:1")


def written(files, directory: Path) -> Path:
    for name, file in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read())
    return directory


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_blob_has_the_digest_and_size_it_is_listed_with(store, image) -> None:
    files = oci_layout(store, "two:1")
    for name, file in files.items():
        data = file.read()
        assert len(data) == file.size
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{sha256(data)}"
    (entry,) = json.loads(files["index.json"].read())["manifests"]
    manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"].read())
    assert manifest["config"]["digest"] == f"sha256:{image.id}"
    for descriptor in (entry, manifest["config"], *manifest["layers"]):
        assert files[f"blobs/sha256/{descriptor['digest'][7:]}"].size == descriptor["size"]
    assert entry["digest"] == image.digest
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "1"


def test_skopeo_copies_from_the_layout(store, image, skopeo, btrfs_dir) -> None:
    layout = written(oci_layout(store, "two:1"), btrfs_dir / "layout")
    skopeo("copy", f"oci:{layout}", f"dir:{btrfs_dir / 'dir'}")
    manifest = json.loads((btrfs_dir / "dir" / "manifest.json").read_text())
    assert manifest["config"]["digest"] == f"sha256:{image.id}"
    assert len(manifest["layers"]) == 2


def test_an_image_with_compressed_layers_gets_a_manifest_that_fits(store, image, podman, btrfs_dir) -> None:
    archive = btrfs_dir / "compressed.tar"
    podman("save", "--format", "oci-archive", "-o", archive, "localhost/two:1")
    store.delete_container("c")
    podman("rmi", "--all")
    podman("load", "-i", archive)
    loaded = store.image("localhost/two:1")
    files = oci_layout(store, "localhost/two:1")
    (entry,) = json.loads(files["index.json"].read())["manifests"]
    manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"].read())
    assert entry["digest"] != loaded.digest
    assert [layer["digest"] for layer in manifest["layers"]] == [
        layer.diff_digest for layer in store.catalog().chain(loaded.layer)
    ]
    for descriptor in manifest["layers"]:
        assert sha256(files[f"blobs/sha256/{descriptor['digest'][7:]}"].read()) == descriptor["digest"][7:]


def test_podman_loads_the_docker_archive(store, image, podman, btrfs_dir) -> None:
    file = docker_archive(store, "two:1")
    path = btrfs_dir / "image.tar"
    path.write_bytes(file.read())
    assert path.stat().st_size == file.size
    store.delete_container("c")
    podman("rmi", "--all")
    assert store.images() == []
    assert "localhost/two:1" in podman("load", "-i", path).stdout
    assert store.image("localhost/two:1").id == image.id
    assert podman("run", "--rm", "two:1", "cat", "/added").stdout == "x" * 100_000


def test_the_archive_reads_the_same_from_every_place(store, image) -> None:
    file = docker_archive(store, "two:1")
    whole = file.read()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert len(archive.getnames()) == 4
    with file.open() as stream:
        for at in (file.size - 1, 0, 513, file.size // 2, 511, file.size - 1024, 3 << 20, file.size):
            stream.seek(at)
            assert stream.read(2000) == whole[at : at + 2000]
        assert stream.seek(-10, os.SEEK_END) == file.size - 10
        assert stream.read() == whole[-10:]


def test_an_image_without_layers_has_a_layout(store, skopeo, btrfs_dir) -> None:
    from store.oci import put_image
    from store.oci_config import build_config, build_manifest, host_platform

    config = build_config(
        created="2026-01-01T00:00:00Z", config={}, diff_ids=[], history=[], target=host_platform()
    )
    image = put_image(store, config=config, manifest=build_manifest(config, []), layer="", names=[])
    layout = written(oci_layout(store, image.id), btrfs_dir / "layout")
    assert json.loads((layout / "index.json").read_text())["manifests"][0]["digest"] == image.digest


def test_a_changed_image_layer_is_found_out_when_it_is_read(store, image) -> None:
    base = store.catalog().chain(image.layer)[0]
    (store.driver.get(base.id) / "etc" / "hostname").write_text("evil-test\n"[:9])
    files = oci_layout(store, "two:1")
    with pytest.raises(IntegrityError):
        files[f"blobs/sha256/{base.diff_digest[7:]}"].read()


def test_an_unknown_image_is_said_so(store) -> None:
    with pytest.raises(ImageUnknown):
        oci_layout(store, "nothing")


def test_an_image_on_a_layer_without_an_archive_has_no_layout(store, image) -> None:
    store.tar_split_path(image.layer).unlink()
    with pytest.raises(SizeUnknown, match=image.layer[:12]):
        oci_layout(store, "two:1")


def test_an_image_whose_config_names_other_layers_has_no_layout(store, image) -> None:
    document = json.loads(store.image_big_data(image.id, f"sha256:{image.id}"))
    document["rootfs"]["diff_ids"].reverse()
    store.set_image_big_data(image.id, f"sha256:{image.id}", json.dumps(document).encode())
    with pytest.raises(BadRecord, match="not those"):
        oci_layout(store, "two:1")
