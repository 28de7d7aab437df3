"""States of a store that make containers-storage or podman fail: we open it, name it and mend it.

Each is one that was seen to break the real tools (FORMAT 2.5, 4, 5 and 7). The tests prove that first.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from store.check import CheckOptions, Kind, RepairOptions
from store.oci import big_data
from store.oci_config import build_manifest
from store.records import INCOMPLETE
from store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
IMAGE = "localhost/img:latest"
ONE, TWO = "ab" * 32, "cd" * 32
CREATED = "2026-01-01T00:00:00Z"
ALL = CheckOptions(digests=True, manifests=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to break a store.

    Attributes:
        damage: does it.
        kind: what a check calls it.
        tool: ``containers_storage`` or ``podman``, whichever fails at ``command``.
        kept: containers that are left when it is mended.
    """

    damage: Callable[[Store], object]
    kind: Kind
    tool: str = "containers_storage"
    command: tuple[str, ...] = ("layers",)
    kept: int = 1


def edit(store: Store, table: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = store.table_directory(table) / f"{table}.json"
    records = json.loads(path.read_bytes())
    change(records)
    path.write_text(json.dumps(records))


def flag(*ids: str) -> Callable[[Store], object]:
    """Records of layers that were never finished and have no content."""
    records = [{"id": i, "created": CREATED, "flags": {INCOMPLETE: True}} for i in ids]
    return lambda store: edit(store, "layers", lambda found: found.extend(records))


def drop_manifest(store: Store) -> None:
    store.create_image(id=ONE, layer=store.layer("base").id)


def spoil_digest(store: Store) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["digest"] = records[0]["big-data-digests"]["manifest"] = "sha256:nonsense"

    edit(store, "images", change)


def add_parent_key(store: Store) -> None:
    edit(store, "images", lambda records: records[0]["big-data-names"].append(".."))


def alter_file(store: Store) -> None:
    files = [path for path in store.layer_path("base").rglob("*") if path.is_file() and not path.is_symlink()]
    victim = next(path for path in files if path.stat().st_size)
    victim.write_bytes(b"?" * victim.stat().st_size)


EXPORT = ("diff", "--uncompressed", "--file", "/dev/null", "base")
PODMAN_IMAGES = {"tool": "podman", "command": ("images",)}
CASES = {
    "flagged layer without content (7)": Case(damage=flag(ONE), kind=Kind.INCOMPLETE_LAYER),
    "layer with an impossible ID (7)": Case(damage=flag("x/y"), kind=Kind.INCOMPLETE_LAYER),
    "several flagged layers (7)": Case(damage=flag(ONE, TWO, "x" * 256), kind=Kind.INCOMPLETE_LAYER),
    "image without a manifest (2.5)": Case(damage=drop_manifest, kind=Kind.MISSING_MANIFEST, **PODMAN_IMAGES),
    "malformed digest (4)": Case(damage=spoil_digest, kind=Kind.BAD_DIGEST, command=("images",)),
    "big data key that leads elsewhere (4)": Case(damage=add_parent_key, kind=Kind.BAD_KEY, **PODMAN_IMAGES),
    "layer that differs from its tar-split (5)": Case(
        damage=alter_file, kind=Kind.MODIFIED_LAYER, command=EXPORT, kept=0
    ),
}


@pytest.fixture
def store(options):
    with Store(options) as store:
        layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
        config, image = (
            b'{"architecture":"amd64","os":"linux"}',
            store.create_image(names=[IMAGE], layer=layer.id),
        )
        for key, data in big_data(config, build_manifest(config, [])):
            store.set_image_big_data(image.id, key, data)
        store.create_container(names=["web"], image=IMAGE)
        yield store


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_store_that_breaks_their_tools_is_opened_named_and_mended(case, store, options, request):
    podman, theirs = (request.getfixturevalue(name) for name in ("podman", "containers_storage"))
    tool = {"podman": podman, "containers_storage": theirs}[case.tool]
    tool(*case.command)
    case.damage(store)
    assert tool(*case.command, check=False).returncode, "this does not break them"
    found = store.check(ALL)
    assert case.kind in {problem.kind for problem in found}
    assert [record.names for record in store.containers()] == [("web",)]
    with Store(options) as again:
        assert again.image(IMAGE)
        assert again.layer_path("base").is_dir()
        made = again.create_layer(names=["new"])
        again.delete_layer(made.id)
        assert again.repair(found, RepairOptions(remove_containers=True)) == []
        assert again.check(ALL) == []
        assert len(again.containers()) == case.kept
    assert len(json.loads(theirs("containers", "--json").stdout) or []) == case.kept
    theirs("layers")
    theirs("images")
    podman("images")
    podman("ps", "--all", "--external")
    theirs("create-layer", "--name", "after")
    theirs("delete-layer", "after")
    if case.kept:
        theirs(*EXPORT)
        theirs("delete-container", "web")
        podman("rmi", "--all", "--force")
        assert store.layers() == []
