"""User namespaces beside podman and containers-storage: the same IDs, the same records, the same owners.

``/etc/subuid`` and ``/etc/subgid`` are private files, in a mount namespace of each peer's.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.idmap import IDMap
from store.config import load_options
from store.errors import NoAvailableIDs
from store.idranges import subordinate_ids
from store.store import AutoUserNs, ContainerOptions, Store
from tests.support.tools import Tool, ToolFailed

SUBUID = "containers:100000:3000\nother:300000:1000\ncontainers:200000:9000\n"
SUBGID = "other:500000:1000\ncontainers:400000:12000\n"
KEYS = """
[storage.options]
root-auto-userns-user = "{user}"
auto-userns-min-size = 100
auto-userns-max-size = 1500
"""
OWNERS = (0, 7, 1200)


def image_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for owner in OWNERS:
            member = tarfile.TarInfo(f"file{owner}")
            member.uid, member.gid = owner, owner // 2
            archive.addfile(member)
    return buffer.getvalue()


def owners(root: Path) -> dict[str, tuple[int, int]]:
    """Of the files; the root directory of a mapped copy stays the host root's with containers-storage."""
    found = {f"file{owner}": (root / f"file{owner}").stat() for owner in OWNERS}
    return {name: (status.st_uid, status.st_gid) for name, status in found.items()}


@pytest.fixture
def subids(tmp_path, monkeypatch) -> Path:
    """The directory of the private files; ours read them from there."""
    for name, text in (("subuid", SUBUID), ("subgid", SUBGID)):
        (tmp_path / name).write_text(text)
    for module in ("store.idmaps", "store.config"):
        monkeypatch.setattr(
            f"{module}.subordinate_ids", lambda path, user: subordinate_ids(tmp_path / path.name, user)
        )
    return tmp_path


def inside(tool: Tool, subids: Path, env: dict[str, str]) -> Tool:
    """The peer where the private files are those of /etc."""
    mounts = " && ".join(f"mount --bind {subids / name} /etc/{name}" for name in ("subuid", "subgid"))
    return Tool(("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *tool.prefix), env)


def mappings(maps: tuple[IDMap, ...]) -> list[dict[str, int]]:
    return [{"container_id": m.container_id, "host_id": m.host_id, "size": m.size} for m in maps]


@pytest.fixture
def conf(toolbox, monkeypatch):
    """Writes the storage.conf that all of them read."""
    path = Path(toolbox.env()["CONTAINERS_STORAGE_CONF"])
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(path))
    places = path.read_text()
    return lambda text: path.write_text(places + text)


class Beside:
    """A store that podman made containers in, and its records."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def records(self, kind: str) -> dict[str, dict]:
        path = self.store.table_directory(kind) / f"{kind}.json"
        return {record["id"]: record for record in json.loads(path.read_bytes())}

    def shape(self, container_id: str) -> dict[str, object]:
        """Everything of a container that mappings decide."""
        container = self.records("containers")[container_id]
        layer = self.records("layers")[container["layer"]]
        above = self.records("layers")[layer["parent"]]
        maps = [(r.get("uidmap"), r.get("gidmap")) for r in (container, layer, above)]
        return {
            "maps": maps,
            "sets": (above.get("uidset"), above.get("gidset")),
            "owners": [owners(self.store.layer_path(r["id"])) for r in (layer, above)],
        }


@pytest.mark.parametrize("user", ["containers", "other"])
def test_automatic_namespaces_are_those_podman_chooses(podman, toolbox, conf, subids, user):
    conf(KEYS.format(user=user))
    theirs = inside(
        podman, subids, podman.env | {"CONTAINERS_STORAGE_CONF": os.environ["CONTAINERS_STORAGE_CONF"]}
    )
    (subids / "image.tar").write_bytes(image_tar())
    podman("import", subids / "image.tar", "localhost/img:1")
    extra = {"additional_uidmap": (IDMap(100, 5000, 1),), "additional_gidmap": (IDMap(5, 6000, 2),)}
    wishes = [
        ("size=300", AutoUserNs(size=300)),
        ("size=400,uidmapping=100:5000:1,gidmapping=5:6000:2", AutoUserNs(size=400, **extra)),
    ]
    if user == "containers":
        wishes += [("", AutoUserNs()), ("size=2500", AutoUserNs(size=2500))]
    with Store(load_options()) as store:
        beside = Beside(store)
        for words, wish in wishes:
            made = theirs(
                "create", f"--userns=auto:{words}".rstrip(":"), "localhost/img:1", "/x"
            ).stdout.strip()
            expected = beside.shape(made)
            theirs("rm", made)
            ours = store.create_container(image="localhost/img:1", options=ContainerOptions(auto_userns=wish))
            assert beside.shape(ours.id) == expected, words
            after = theirs("create", "--userns=auto:size=20", "localhost/img:1", "/x").stdout.strip()
            low = beside.records("containers")[after]["uidmap"][0]["host_id"]
            assert all(not m.host_id <= low < m.host_id + m.size for m in ours.uidmap), "podman sees ours"
        with pytest.raises(NoAvailableIDs):
            store.create_container(options=ContainerOptions(auto_userns=AutoUserNs(size=20000)))
        with pytest.raises(ToolFailed, match="could not find enough available IDs"):
            theirs("create", "--userns=auto:size=20000", "localhost/img:1", "/x")
        small = replace(store.options, auto_userns_max_size=1000)
        store.reload_options(small)
        with pytest.raises(NoAvailableIDs, match="auto-userns-max-size"):
            store.create_container(
                image="localhost/img:1", options=ContainerOptions(auto_userns=AutoUserNs())
            )
        conf(KEYS.format(user=user).replace("1500", "1000"))
        with pytest.raises(ToolFailed, match="bigger than the maximum value"):
            theirs("create", "--userns=auto", "localhost/img:1", "/x")


def test_podman_runs_in_a_namespace_we_chose_beside_its_own(podman, conf, subids, rootfs_tar, store_dirs):
    conf(KEYS.format(user="containers"))
    env = podman.env | {"CONTAINERS_STORAGE_CONF": os.environ["CONTAINERS_STORAGE_CONF"]}
    theirs = inside(podman, subids, env)
    podman("import", rootfs_tar, "localhost/small:1")
    with Store(load_options()) as store:
        ours = store.create_container(
            image="localhost/small:1", options=ContainerOptions(auto_userns=AutoUserNs(size=300))
        )
        (taken,) = ours.uidmap
        seen = theirs(
            "run", "--rm", "--userns=auto:size=300", "localhost/small:1", "cat", "/proc/self/uid_map"
        )
        inner, outer, size = map(int, seen.stdout.split())
        assert (inner, outer, size) == (0, taken.host_id + taken.size, 300)


@pytest.mark.parametrize(
    "keys",
    [
        'remap-uids = "0:1000:2000"\nremap-gids = "0:3000:2000"',
        'remap-uids = "0:1000:7:7:9000:2000"\nremap-gids = "0:3000:2000"',
        'remap-uids = "0:1000:2000"',
    ],
)
def test_remapped_stores_have_the_records_and_owners_of_containers_storage(
    containers_storage, conf, subids, btrfs_dir, keys
):
    conf(f"[storage.options]\n{keys}\n")
    (subids / "image.tar").write_bytes(image_tar())
    theirs = Tool(("containers-storage",), containers_storage.env | os.environ)
    base = theirs("import-layer", "-f", subids / "image.tar").stdout.strip()
    theirs("create-image", "-n", "theirs", base)
    theirs("create-image", "-n", "hollow")
    options = load_options()
    with Store(options) as store:
        beside = Beside(store)
        layer, _ = store.put_layer(io.BytesIO(image_tar()))
        store.create_image(names=["ours"], layer=layer.id)

        def made(kind: str, record_id: str) -> tuple[object, ...]:
            record = beside.records(kind)[record_id]
            return record.get("uidmap"), record.get("gidmap")

        assert (
            made("layers", layer.id)
            == made("layers", base)
            == tuple(mappings(m) or None for m in (options.uidmap, options.gidmap))
        )
        assert owners(store.layer_path(layer.id)) == owners(store.layer_path(base))
        for image in ("hollow", "ours", "theirs"):
            ours = store.create_container(image=image)
            peer = theirs("create-container", "theirs" if image == "ours" else image).stdout.split()[0]
            of_peer = beside.records("containers")[peer]["layer"]
            assert made("containers", ours.id) == made("containers", peer)
            assert made("layers", ours.layer) == made("layers", of_peer)
            if image != "hollow":
                assert owners(store.layer_path(ours.layer)) == owners(store.layer_path(of_peer))
        assert made("layers", store.create_layer(parent=layer.id).id) == made("layers", layer.id)
        bare = theirs("create-layer").stdout.strip()
        assert made("layers", store.create_layer().id) == made("layers", bare)


@pytest.mark.parametrize("key", ["remap-user", "remap-group"])
def test_one_name_gives_users_and_groups(conf, subids, store_dirs, key):
    conf(f'[storage.options]\n{key} = "containers"\n')
    options = load_options()
    assert options.uidmap == (IDMap(0, 100000, 3000), IDMap(3000, 200000, 9000))
    assert options.gidmap == (IDMap(0, 400000, 12000),)


@pytest.mark.parametrize(
    "keys", ['remap-uids = "0:1"', 'remap-user = "nosuch"', "[storage", 'auto-userns-min-size = "x"']
)
def test_command_line_says_what_is_wrong_in_the_file(conf, keys, btrfs_dir):
    conf(f"[storage.options]\n{keys}\n")
    words = [sys.executable, "-m", "fsd", "storage", "layers"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("error initializing: ")
    assert done.stderr == ""
