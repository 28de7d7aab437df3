"""Importing root filesystems as images that podman and skopeo use like their own."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from drivers.errors import HostileArchive, MalformedArchive
from store.errors import BadName, BadValue
from store.history import History
from store.oci import config_document, import_rootfs
from store.store import Store
from tests.support.crash import crash

COMPRESSORS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.fixture(scope="session")
def tar(rootfs_tar: Path) -> bytes:
    return rootfs_tar.read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Pipe(io.RawIOBase):
    """A stream that can be read once, in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._inner.readinto(memoryview(buffer)[:1000])


def empty(store: Store) -> bool:
    return not store.layers() and not store.images() and not list(store.driver.layer_ids())


def test_the_records_are_those_containers_image_would_write(store, tar) -> None:
    image = import_rootfs(store, io.BytesIO(tar), "base")
    (layer,) = store.layers()
    assert layer.id == sha256(tar) == image.layer
    assert layer.diff_digest == f"sha256:{sha256(tar)}"
    assert layer.diff_size == len(tar)
    assert layer.parent == ""
    config = store.image_big_data(image.id, f"sha256:{image.id}")
    manifest = store.image_big_data(image.id, "manifest")
    digest = sha256(manifest)
    assert image.id == sha256(config)
    assert image.digest == f"sha256:{digest}"
    assert image.names == image.names_history == ("localhost/base:latest",)
    assert image.big_data_names == (
        f"sha256:{image.id}",
        f"manifest-sha256:{digest}",
        "manifest",
        f"signature-{digest}",
    )
    assert json.loads(image.metadata) == {"signatures-sizes": {f"sha256:{digest}": []}}
    assert store.image_big_data(image.id, f"signature-{digest}") == b""
    assert store.image_big_data(image.id, f"manifest-sha256:{digest}") == manifest
    assert json.loads(manifest) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": f"sha256:{image.id}",
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": f"sha256:{sha256(tar)}",
                "size": len(tar),
            }
        ],
    }
    document = json.loads(config)
    assert document["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{sha256(tar)}"]}
    assert document["config"]["Cmd"] == ["/bin/sh"]
    assert document["config"]["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert document["created"] == image.created
    assert len(document["history"]) == 1


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_every_compression_gives_the_same_image_from_files_and_pipes(store, tar, kind, stream) -> None:
    packed = COMPRESSORS[kind](tar)
    first = import_rootfs(store, stream(packed), "base")
    again = import_rootfs(store, io.BytesIO(tar), "other")
    assert again.id == first.id
    assert again.layer == sha256(tar)
    assert again.names == ("localhost/base:latest", "localhost/other:latest")
    (layer,) = store.layers()
    assert layer.compressed_digest == f"sha256:{sha256(packed)}"
    assert layer.compressed_size == len(packed)
    assert not os.listdir(store.graphroot / "fsd" / "tmp") if stream is Pipe else True


def test_importing_twice_changes_nothing(store, tar) -> None:
    first = import_rootfs(store, io.BytesIO(tar), "base")
    before = [(p, p.read_bytes()) for p in store.graphroot.glob("btrfs-*/*.json")]
    assert import_rootfs(store, io.BytesIO(tar), "base") == first
    assert [(p, p.read_bytes()) for p in store.graphroot.glob("btrfs-*/*.json")] == before


def test_another_config_is_another_image_on_the_same_layer(store, tar) -> None:
    first = import_rootfs(store, io.BytesIO(tar), "base")
    other = import_rootfs(store, io.BytesIO(tar), "base", config={"Cmd": ["/bin/true"], "User": "web"})
    assert other.layer == first.layer
    assert other.id != first.id
    assert config_document(store, other)[1]["config"]["Cmd"] == ["/bin/true"]
    assert store.image("localhost/base:latest").id == other.id
    assert store.image(first.id).names == ()


def test_an_image_needs_no_name(store, tar) -> None:
    assert import_rootfs(store, io.BytesIO(tar)).names == ()


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("web", "localhost/web:latest"),
        ("web:1", "localhost/web:1"),
        ("docker.io/web", "docker.io/library/web:latest"),
        ("quay.io/a/b:c", "quay.io/a/b:c"),
    ],
)
def test_names_are_normalised_as_podman_does(store, tar, name, full) -> None:
    assert import_rootfs(store, io.BytesIO(tar), name).names == (full,)


def escaping() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in (("x", tarfile.SYMTYPE, "/etc"), ("x/evil", tarfile.REGTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", BadValue),
        (b"this is no archive at all" * 100, MalformedArchive),
        (gzip.compress(b"nor is this" * 1000), MalformedArchive),
        (gzip.compress(bytes(100_000))[:-20], MalformedArchive),
    ],
    ids=["empty", "text", "compressed text", "truncated gzip"],
)
def test_what_is_no_tar_is_refused_and_leaves_nothing(store, data, error) -> None:
    for stream in (io.BytesIO(data), Pipe(data)):
        with pytest.raises(error):
            import_rootfs(store, stream, "base")
        assert empty(store)


def test_a_truncated_tar_is_refused_and_leaves_nothing(store, tar) -> None:
    with pytest.raises(MalformedArchive):
        import_rootfs(store, io.BytesIO(tar[:-5000]), "base")
    assert empty(store)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_an_archive_that_was_cut_anywhere_is_refused(store, tar, kind) -> None:
    """Between two entries, too, and within what follows the last block of the tar."""
    body = len(tar.rstrip(b"\0")) + 511 & -512
    pack = COMPRESSORS[kind]
    packed = pack(tar)
    cut = {"before its end": pack(tar[:body]), "within its end": pack(tar[: body + 512])}
    if kind != "plain":
        cut |= {f"{n} bytes early": packed[:-n] for n in (1, 4, 8)}
        cut |= {"garbage": packed + b"garbage", "garbage in the tar": pack(tar + b"garbage")}
    for what, data in cut.items():
        assert _refused(store, data), what
        assert empty(store)
    assert import_rootfs(store, io.BytesIO(packed), "base")


def _refused(store: Store, data: bytes) -> bool:
    try:
        import_rootfs(store, io.BytesIO(data), "base")
    except MalformedArchive:
        return True
    return False


def test_an_archive_that_reaches_outside_leaves_the_host_alone(store) -> None:
    try:
        import_rootfs(store, io.BytesIO(escaping()), "evil")
    except HostileArchive:
        assert empty(store)
    assert not os.path.lexists("/etc/evil")


@pytest.mark.parametrize("name", ["a/Upper", "a b", "../x", ":tag", "x" * 300 + ":" + "y" * 200])
def test_a_bad_name_is_refused_before_anything_is_read(store, tar, name) -> None:
    archive = io.BytesIO(tar)
    with pytest.raises(BadName):
        import_rootfs(store, archive, name)
    assert archive.tell() == 0
    assert empty(store)


@pytest.mark.parametrize(
    "config",
    [
        {"Cmd": "/bin/sh"},
        {"cmd": ["/bin/sh"]},
        {"Env": ["NOVALUE"]},
        {"Labels": {"a": 1}},
        {"Volumes": ["/data"]},
        {"Nonsense": 1},
        {"User": 0},
    ],
)
def test_a_bad_config_is_refused(store, tar, config) -> None:
    with pytest.raises(BadValue):
        import_rootfs(store, io.BytesIO(tar), "base", config=config)
    assert empty(store)


def test_a_bad_time_is_refused(store, tar) -> None:
    with pytest.raises(BadValue):
        import_rootfs(store, io.BytesIO(tar), "base", created="yesterday")
    assert empty(store)


def test_an_image_that_cannot_be_recorded_leaves_no_layer(store, tar, monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "create_image", fail)
    with pytest.raises(OSError, match="No space"):
        import_rootfs(store, io.BytesIO(tar), "base")
    assert empty(store)


@pytest.mark.parametrize("target", ["store.driver.create", "store.create_image", "store.add_names"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_no_layer_without_its_image(store, rootfs_tar, target, when) -> None:
    crash(store, when, target, f"import_rootfs(store, open({str(rootfs_tar)!r}, 'rb'), 'base')")
    with Store(store.options) as again, closing(History(again).state) as state:
        assert state.pending() == []
        assert {layer.id for layer in again.layers()} == {image.layer for image in again.images()}
        assert {layer.id for layer in again.layers()} == set(again.driver.layer_ids())
        with open(rootfs_tar, "rb") as archive:
            assert import_rootfs(again, archive, "base").names == ("localhost/base:latest",)


def test_eight_imports_at_once_give_one_image_with_eight_names(store, tar) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            import_rootfs(store, io.BytesIO(tar), f"name{number}", created="2026-01-01T00:00:00Z")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    (image,) = store.images()
    assert set(image.names) == {f"localhost/name{n}:latest" for n in range(8)}
    assert len(store.layers()) == 1


def test_podman_lists_inspects_and_runs_the_image(store, tar, podman) -> None:
    config = {
        "Env": ["PATH=/bin", "COLOUR=blue"],
        "Cmd": ["/bin/sh", "-c", "echo $COLOUR; cat /etc/hostname.link"],
    }
    image = import_rootfs(store, io.BytesIO(gzip.compress(tar)), "base", config=config)
    listed = podman("images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Digest}}").stdout
    assert listed.strip() == f"sha256:{image.id} localhost/base:latest {image.digest}"
    (shown,) = json.loads(podman("inspect", "base").stdout)
    assert shown["Config"]["Env"] == config["Env"]
    assert shown["RootFS"]["Layers"] == [f"sha256:{sha256(tar)}"]
    assert shown["Size"] > 0
    assert podman("history", "-q", "base").stdout.strip()
    assert podman("run", "--rm", "base").stdout == "blue\nfsd-test\n"
    assert podman("run", "--rm", "--user", "web", "base", "cat", "/srv/owned").stdout == "by web\n"
    podman("rmi", "base")
    assert empty(store)


def test_skopeo_copies_the_image_out_of_the_store(store, tar, skopeo, btrfs_dir) -> None:
    image = import_rootfs(store, io.BytesIO(tar), "base")
    target = btrfs_dir / "layout"
    skopeo("copy", "containers-storage:localhost/base:latest", f"oci:{target}:base")
    index = json.loads((target / "index.json").read_text())
    manifest_digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads((target / "blobs" / "sha256" / manifest_digest).read_bytes())
    assert manifest["config"]["digest"] == f"sha256:{image.id}"
    blob = (
        target / "blobs" / "sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    ).read_bytes()
    assert gzip.decompress(blob) == tar


def test_podman_import_of_the_same_tar_uses_the_same_layer(store, rootfs_tar, podman) -> None:
    with open(rootfs_tar, "rb") as archive:
        ours = import_rootfs(store, archive, "ours")
    podman("import", rootfs_tar, "theirs")
    assert store.image("localhost/theirs:latest").layer == ours.layer
    assert len(store.layers()) == 1
