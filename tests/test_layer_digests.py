"""Every layer of a store that podman, buildah and skopeo filled comes out with its recorded digest.

And the other way: layers we unpack and record leave the store again through their tools.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from drivers import tarsplit, tarsplit_file
from drivers.archive import apply_archive
from tests.support import tars

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.tools import StoreDirs, Tool

REFUSED = {"contiguous type", "two global headers", "same directory twice"}
BROKEN = {"hard link with size", "directory with size"}
"""Odd archives the peer takes but cannot give back itself; we can."""
ODD = {name: archive for name, archive in tars.ODD.items() if name not in REFUSED and archive}
CODECS: dict[str, Callable[[bytes], bytes]] = {
    ".v1.tar": lambda data: data,
    ".v1.tar+gzip": gzip.compress,
    ".v1.tar+zstd": zstandard.ZstdCompressor().compress,
}


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_layout(base: Path, layers: list[bytes]) -> str:
    """An OCI image layout of one image with these layers, compressed in turn; returns its name for skopeo."""
    blobs = base / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = sha256(data)
        (blobs / digest.split(":")[1]).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": digest, "size": len(data)}

    codecs = list(CODECS.items())
    parts = [put(codecs[n % 3][1](layer), "layer" + codecs[n % 3][0]) for n, layer in enumerate(layers)]
    rootfs = {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    described = put(json.dumps(config).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "config": described, "layers": parts}
    index = put(json.dumps(manifest).encode(), "manifest.v1+json")
    index["annotations"] = {"org.opencontainers.image.ref.name": "odd"}
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (base / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{base}:odd"


def records(dirs: StoreDirs) -> list[dict[str, Any]]:
    return [
        record
        for record in json.loads((dirs.graphroot / "btrfs-layers/layers.json").read_text())
        if record.get("diff-digest")
    ]


def places(dirs: StoreDirs, layer_id: str) -> tuple[Path, Path]:
    return (
        dirs.graphroot / "btrfs-layers" / f"{layer_id}.tar-split.gz",
        dirs.graphroot / "btrfs/subvolumes" / layer_id,
    )


def check_all(dirs: StoreDirs) -> int:
    """Both readers of every layer agree with its record."""
    found = records(dirs)
    for record in found:
        split, tree = places(dirs, record["id"])
        with tarsplit_file.open_lines(split) as lines, tarsplit.assemble(lines, tree) as stream:
            whole = stream.read()
        assert sha256(whole) == record["diff-digest"], record
        assert len(whole) == record["diff-size"]
        with tarsplit.open_index(split, tree) as diff:
            assert diff.size == len(whole)
            middle = len(whole) // 2
            assert diff.read_at(middle, 4000) == whole[middle : middle + 4000]
    return len(found)


def test_digests_of_layers_made_by_podman_and_buildah(
    podman: Tool, buildah: Tool, store_dirs: StoreDirs, rootfs_tar: Path, btrfs_dir: Path
) -> None:
    podman("import", rootfs_tar, "base")
    context = btrfs_dir / "context"
    context.mkdir()
    (context / "file").write_bytes(b"x" * 100_000)
    (context / "gr\u00fc\u00dfe\n").write_text("odd name")
    os.link(context / "file", context / "hard")
    steps = ["FROM localhost/base"]
    steps += [f"COPY file /srv/copy{n}" for n in range(3)]
    steps += ["COPY . /all/", "RUN rm -r /usr /etc/hostname.link", "RUN mkdir /usr && touch /usr/new"]
    steps += ["RUN mv /srv/empty /srv/moved", "RUN echo changed > /etc/hostname", "RUN rm /srv/copy1"]
    (btrfs_dir / "Containerfile").write_text("\n".join(steps))
    buildah("bud", "--layers", "-f", btrfs_dir / "Containerfile", "-t", "built", context)
    for number in range(3):
        name = buildah("from", "localhost/built").stdout.strip()
        buildah("run", name, "--", "sh", "-c", f"echo {number} > /srv/by-buildah; rm -f /srv/copy2")
        buildah("commit", "--rm", name, f"committed{number}")
    assert check_all(store_dirs) >= 12


def test_digests_of_odd_layers_stored_by_skopeo(skopeo: Tool, store_dirs: StoreDirs, btrfs_dir: Path) -> None:
    layout = write_layout(btrfs_dir / "layout", list(ODD.values()))
    skopeo("copy", layout, "containers-storage:localhost/odd:1")
    assert check_all(store_dirs) == len(ODD) >= 20


def test_layers_we_apply_leave_through_skopeo(
    skopeo: Tool, podman: Tool, store_dirs: StoreDirs, btrfs_dir: Path
) -> None:
    """Each layer's content and tar-split are replaced by ours before the image is copied out."""
    archives = list(ODD.values())
    skopeo("copy", write_layout(btrfs_dir / "layout", archives), "containers-storage:localhost/odd:1")
    previous: Path | None = None
    for record, archive in zip(records(store_dirs), archives, strict=True):
        split, tree = places(store_dirs, record["id"])
        subprocess.run(["find", tree, "-mindepth", "1", "-delete"], check=True)
        if previous is not None:
            subprocess.run(["cp", "-a", "--reflink=always", f"{previous}/.", tree], check=True)
        split.unlink()
        with tarsplit_file.create(split) as lines:
            learnt = apply_archive(tree, io.BytesIO(archive), tar_split=lines)
        assert learnt.diff_digest == record["diff-digest"]
        previous = tree
    skopeo("copy", "containers-storage:localhost/odd:1", f"dir:{btrfs_dir / 'out'}")
    manifest = json.loads((btrfs_dir / "out/manifest.json").read_text())
    opened = [
        plain((btrfs_dir / "out" / part["digest"].split(":")[1]).read_bytes()) for part in manifest["layers"]
    ]
    assert opened == archives
    inspected = json.loads(podman("image", "inspect", "localhost/odd:1").stdout)[0]
    assert inspected["RootFS"]["Layers"] == [sha256(archive) for archive in archives]


def plain(blob: bytes) -> bytes:
    for magic, codec in (
        (b"\x1f\x8b", gzip.decompress),
        (b"BZh", bz2.decompress),
        (b"\xfd7z", lzma.decompress),
    ):
        if blob.startswith(magic):
            return codec(blob)
    if blob.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    return blob


def test_layers_the_peer_cannot_give_back_come_back(
    containers_storage: Tool, store_dirs: StoreDirs, btrfs_dir: Path
) -> None:
    for number, name in enumerate(sorted(BROKEN), 1):
        file, layer_id = btrfs_dir / "a.tar", f"{number:064x}"
        file.write_bytes(ODD[name])
        containers_storage("import-layer", "--id", layer_id, "-f", file)
        refused = containers_storage("diff", "-u", "-f", btrfs_dir / "out.tar", layer_id, check=False)
        split, tree = places(store_dirs, layer_id)
        with tarsplit_file.open_lines(split) as lines, tarsplit.assemble(lines, tree) as stream:
            assert stream.read() == ODD[name]
        assert refused.returncode, "the peer learnt to read it"


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_layers_recorded_by_us_come_back_through_the_peer(
    name: str, containers_storage: Tool, store_dirs: StoreDirs, btrfs_dir: Path
) -> None:
    containers_storage("create-layer", "--id", "c" * 64)
    split, tree = places(store_dirs, "c" * 64)
    with tarsplit_file.create(split) as lines:
        apply_archive(tree, io.BytesIO(ODD[name]), tar_split=lines)
    containers_storage("diff", "-u", "-f", btrfs_dir / "out.tar", "c" * 64)
    assert (btrfs_dir / "out.tar").read_bytes() == ODD[name]
