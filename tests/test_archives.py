"""Loading docker-archives and oci-archives: what podman makes of them, and what nobody should."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from drivers.errors import HostileArchive, MalformedArchive
from store import archive_files
from store.archives import load_archive
from store.commit import commit
from store.config import StoreOptions
from store.errors import BadValue
from store.history import History
from store.layout import docker_archive, oci_layout
from store.oci import import_rootfs
from store.packing import write_file
from store.store import Store
from tests.support.crash import crash
from tests.support.tools import StoreDirs, ToolBox


@pytest.fixture
def other(btrfs_dir):
    """A second store, and podman on it."""
    dirs = StoreDirs(btrfs_dir / "g2", btrfs_dir / "r2")
    options = StoreOptions(graphroot=str(dirs.graphroot), runroot=str(dirs.runroot), driver="btrfs")
    with Store(options) as store:
        yield store, ToolBox(dirs, "btrfs", btrfs_dir / "conf2").podman()


@pytest.fixture
def image(store, rootfs_tar):
    """Two layers and two names."""
    with open(rootfs_tar, "rb") as archive:
        base = import_rootfs(store, archive, "base")
    container = store.create_container(names=["c"], image=base.id)
    (store.driver.get(container.layer) / "added").write_text("hello\n")
    found = commit(store, "c", "two:1")
    store.add_names(found.id, ["localhost/again:2"], last=True)
    return store.image(found.id)


def files_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def oci_files(store: Store, name: str) -> dict[str, bytes]:
    return {path: file.read() for path, file in oci_layout(store, name).items()}


def blob(data: bytes) -> tuple[str, str]:
    digest = hashlib.sha256(data).hexdigest()
    return f"sha256:{digest}", f"blobs/sha256/{digest}"


class Pipe(io.RawIOBase):
    """A stream that can be read once."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._inner.readinto(buffer)


def empty(store: Store) -> bool:
    return not store.layers() and not store.images() and not list(store.driver.layer_ids())


def comparable(store: Store) -> tuple[list[object], list[object], dict[str, bytes]]:
    """Records without times, and the images' files."""
    directory = store.graphroot / "btrfs-images"
    return (
        [replace(layer, created="") for layer in store.layers()],
        store.images(),
        {str(p.relative_to(directory)): p.read_bytes() for p in directory.glob("*/*")},
    )


# -- like podman -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_what_podman_saved_is_loaded_as_podman_loads_it(store, image, podman, other, btrfs_dir, form) -> None:
    archive = btrfs_dir / "saved.tar"
    podman("save", "--format", form, "-o", archive, "localhost/two:1")
    ours, theirs = other
    theirs("load", "-i", archive)
    wanted = comparable(ours)
    theirs("rmi", "--all")
    assert empty(ours)
    with open(archive, "rb") as file:
        (loaded,) = load_archive(ours, file)
    assert comparable(ours) == wanted
    assert loaded.names == ("localhost/two:1",)
    assert theirs("run", "--rm", "two:1", "cat", "/added").stdout == "hello\n"


def test_docker_saves_short_names_and_they_become_docker_ios(store, image, other) -> None:
    files = files_of(docker_archive(store, "two:1").read())
    (entry,) = json.loads(files["manifest.json"])
    entry["RepoTags"] = ["alpine:3", "user/x:1", "no tag at all!"]
    files["manifest.json"] = json.dumps([entry]).encode()
    (loaded,) = load_archive(other[0], io.BytesIO(packed(files)))
    assert loaded.names == ("docker.io/library/alpine:3", "docker.io/user/x:1")


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data)]
)
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_our_own_archives_come_back_whole_in_every_compression(store, image, other, compress, stream) -> None:
    target = other[0]
    (first,) = load_archive(target, stream(compress(docker_archive(store, "two:1").read())))
    assert (first.id, first.names) == (image.id, ("localhost/two:1", "localhost/again:2"))
    (second,) = load_archive(target, stream(compress(packed(oci_files(store, "two:1")))))
    assert second == first
    assert len(target.layers()) == 2


def test_a_layer_that_is_there_is_not_read_again(store, image) -> None:
    files = files_of(docker_archive(store, "two:1").read())
    for name in [name for name in files if name.endswith(".tar")]:
        files[name] = b"not even a tar"
    (loaded,) = load_archive(store, io.BytesIO(packed(files)))
    assert loaded.id == image.id


def test_several_images_in_one_archive_are_all_loaded(store, image, other, podman, btrfs_dir) -> None:
    archive = btrfs_dir / "both.tar"
    podman("save", "-m", "-o", archive, "localhost/two:1", "localhost/base:latest")
    with open(archive, "rb") as file:
        loaded = load_archive(other[0], file)
    assert {i.id for i in loaded} == {i.id for i in store.images()}
    assert len(other[0].layers()) == 2


def test_an_index_in_the_index_gives_the_image_for_this_machine(store, image, other) -> None:
    files = oci_files(store, "two:1")
    (entry,) = json.loads(files["index.json"])["manifests"]
    here = json.loads(files[f"blobs/sha256/{image.id}"])
    platforms = [{"architecture": "sparc", "os": "plan9"}, {k: here[k] for k in ("architecture", "os")}]
    foreign = {**entry, "digest": "sha256:" + "0" * 64}
    inner = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {**foreign, "platform": platforms[0]},
                {**entry, "platform": platforms[1]},
            ],
        }
    ).encode()
    digest, path = blob(inner)
    outer = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": len(inner)}
    files[path] = inner
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode()
    (loaded,) = load_archive(other[0], io.BytesIO(packed(files)))
    assert loaded.id == image.id
    files[path] = inner.replace(b'"' + here["architecture"].encode(), b'"sparc')
    digest, path2 = blob(files[path])
    files[path2] = files.pop(path)
    files["index.json"] = json.dumps({"manifests": [{**outer, "digest": digest}]}).encode()
    with pytest.raises(BadValue, match="no image for"):
        load_archive(other[0], io.BytesIO(packed(files)))


# -- what is bad -----------------------------------------------------------------------------------


def broken_config(files: dict[str, bytes], entry: dict[str, object]) -> None:
    files[str(entry["Config"])] = b"{"


def no_diff_ids(files: dict[str, bytes], entry: dict[str, object]) -> None:
    files[str(entry["Config"])] = b'{"rootfs":{"type":"layers"}}'


def missing_layer(files: dict[str, bytes], entry: dict[str, object]) -> None:
    files.pop(entry["Layers"][-1])  # type: ignore[index]


def other_layer(files: dict[str, bytes], entry: dict[str, object]) -> None:
    files[entry["Layers"][-1]] = packed({"evil": b"x"})  # type: ignore[index]


def layers_swapped(files: dict[str, bytes], entry: dict[str, object]) -> None:
    entry["Layers"].reverse()  # type: ignore[attr-defined]


def no_texts(files: dict[str, bytes], entry: dict[str, object]) -> None:
    entry["Layers"] = [1, 2]


def no_config(files: dict[str, bytes], entry: dict[str, object]) -> None:
    del entry["Config"]


def outside(files: dict[str, bytes], entry: dict[str, object]) -> None:
    entry["Config"] = "../../../../etc/passwd"


@pytest.mark.parametrize(
    "damage",
    [
        broken_config,
        no_diff_ids,
        missing_layer,
        other_layer,
        layers_swapped,
        no_texts,
        no_config,
        outside,
    ],
)
def test_a_bad_docker_archive_is_refused_and_leaves_nothing(store, image, other, damage) -> None:
    files = files_of(docker_archive(store, "two:1").read())
    (entry,) = json.loads(files["manifest.json"])
    damage(files, entry)
    files["manifest.json"] = json.dumps([entry]).encode()
    with pytest.raises(MalformedArchive):
        load_archive(other[0], io.BytesIO(packed(files)))
    assert empty(other[0])


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifests":{}}',
        b'{"manifests":[]}',
        b'{"manifests":[1]}',
        b'{"manifests":[{"digest":"sha256:xyz"}]}',
        b'{"manifests":[{"digest":"md5:00"}]}',
        b'{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}',
        b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'"}]}',
        b'{"manifests":' + b"[" * 100_000,
    ],
)
def test_a_bad_index_is_refused(store, index) -> None:
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    with pytest.raises(MalformedArchive):
        load_archive(store, io.BytesIO(packed(files)))
    assert empty(store)


def test_a_blob_that_is_not_what_its_name_says_is_refused(store, image, other) -> None:
    files = oci_files(store, "two:1")
    for name in [name for name in files if name.startswith("blobs/")]:
        changed = files | {name: files[name] + b" "}
        with pytest.raises(MalformedArchive):
            load_archive(other[0], io.BytesIO(packed(changed)))
        assert empty(other[0])


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 5000, gzip.compress(b"x" * 5000), bytes(10240)],
    ids=["empty", "text", "gzip of text", "zeros"],
)
def test_what_is_no_image_archive_is_refused(store, data) -> None:
    for stream in (io.BytesIO(data), Pipe(data)):
        with pytest.raises((MalformedArchive, BadValue)):
            load_archive(store, stream)
    assert empty(store)


def test_a_root_filesystem_is_told_to_be_imported(store, rootfs_tar: Path) -> None:
    with open(rootfs_tar, "rb") as file, pytest.raises(BadValue, match="imported"):
        load_archive(store, file)


def test_every_truncation_is_refused_and_leaves_nothing(store, image, other) -> None:
    whole = docker_archive(store, "two:1").read()
    for end in (100, 512, 100_000, len(whole) // 2, len(whole) - 3000):
        with pytest.raises((MalformedArchive, BadValue)):
            load_archive(other[0], io.BytesIO(whole[:end]))
        assert empty(other[0])


def linked(files: dict[str, bytes], target: str) -> io.BytesIO:
    buffer = io.BytesIO(packed(files))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        member = tarfile.TarInfo("dir/link")
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return io.BytesIO(buffer.getvalue())


def test_links_are_followed_inside_the_archive_and_never_for_ever(store, image, other) -> None:
    files = files_of(docker_archive(store, "two:1").read())
    (entry,) = json.loads(files["manifest.json"])
    base, entry["Layers"][0] = entry["Layers"][0], "dir/link"
    files["manifest.json"] = json.dumps([entry]).encode()
    for target in ("link", "/etc/passwd", "../../etc/passwd"):
        with pytest.raises(MalformedArchive, match="has no file"):
            load_archive(other[0], linked(files, target))
    assert empty(other[0])
    (loaded,) = load_archive(other[0], linked(files, f"../{base}"))
    assert loaded.id == image.id


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_before_the_image_is_made_leaves_nothing(store, image, other, btrfs_dir, when) -> None:
    path = btrfs_dir / "image.tar"
    path.write_bytes(docker_archive(store, "two:1").read())
    target = other[0]
    crash(target, when, "store.create_image", f"load_archive(store, open({str(path)!r}, 'rb'))")
    with closing(History(target).state) as state:
        assert state.pending() == []
    assert len(target.layers()) == len(set(target.driver.layer_ids())) == (0 if when == "before" else 2)


def test_documents_and_members_have_bounds(store, monkeypatch) -> None:
    monkeypatch.setattr(archive_files, "DOCUMENT_SIZE", 100)
    with pytest.raises(HostileArchive, match="more than 100 bytes"):
        load_archive(store, io.BytesIO(packed({"manifest.json": b" " * 101})))
    monkeypatch.setattr(archive_files, "MEMBERS", 10)
    with pytest.raises(HostileArchive, match="more than 10 members"):
        load_archive(store, io.BytesIO(packed({f"m{n}": b"" for n in range(11)})))


def test_archive_that_cannot_be_written_is_told_by_the_name_that_was_asked_for(store, image, tmp_path):
    (tmp_path / "is a directory").mkdir()
    (tmp_path / "is a file").touch()
    for where in ("absent/f", "is a directory", "is a file/f"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            write_file(docker_archive(store, image.id), tmp_path / where)
        assert caught.value.filename == str(tmp_path / where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["is a directory", "is a file"]
