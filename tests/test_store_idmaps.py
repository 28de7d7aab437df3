"""ID mappings: inheritance, mapped copies of image layers, automatic user namespaces."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.idmap import IDMap
from store import idranges
from store.config import StoreOptions
from store.errors import BadValue, InvalidMappings, LayerNotMounted, NoAvailableIDs
from store.idranges import Range, free_ranges, pack, subordinate_ids
from store.store import AutoUserNs, ContainerOptions, LayerOptions, Store

MAP = (IDMap(0, 300000, 65536),)
OTHER = (IDMap(0, 500000, 65536),)


def archive(*owners: int, passwd: str = "") -> io.BytesIO:
    """A tar with a file per owner, and a user database."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for owner in owners:
            info = tarfile.TarInfo(f"file{owner}")
            info.uid = info.gid = owner
            tar.addfile(info)
        data = passwd.encode()
        info = tarfile.TarInfo("etc/passwd")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


@pytest.fixture
def options(store_dirs) -> StoreOptions:
    return StoreOptions(
        graphroot=str(store_dirs.graphroot),
        runroot=str(store_dirs.runroot),
        driver="btrfs",
        auto_userns_min_size=100,
        auto_userns_max_size=5000,
        root_auto_userns_user="nested",
    )


@pytest.fixture
def store(options):
    with Store(options) as store:
        yield store


@pytest.fixture
def image(store):
    layer, _ = store.put_layer(archive(0, 7), names=["base"])
    return store.create_image(names=["img"], layer=layer.id)


def owner(store: Store, layer: str, name: str) -> tuple[int, int]:
    st = os.lstat(store.layer_path(layer) / name)
    return st.st_uid, st.st_gid


def test_layer_under_mapping_has_shifted_owners(store):
    layer, _ = store.put_layer(archive(0, 7), options=LayerOptions(uidmap=MAP, gidmap=OTHER))
    assert (layer.uidmap, layer.gidmap) == (MAP, OTHER)
    assert owner(store, layer.id, "file7") == (300007, 500007)
    assert (layer.uids, layer.gids) == ((0, 7), (0, 7))
    child = store.create_layer(parent=layer.id)
    assert child.mappings == layer.mappings
    plain = store.create_layer(parent=layer.id, options=LayerOptions(host_uidmap=True, host_gidmap=True))
    assert plain.mappings.uids == ()
    assert owner(store, plain.id, "file7") == (7, 7)


def test_container_gets_mapped_copy_that_others_share(store, image):
    first = store.create_container(image="img", options=ContainerOptions(uidmap=MAP, gidmap=MAP))
    second = store.create_container(image="img", options=ContainerOptions(uidmap=MAP, gidmap=MAP))
    third = store.create_container(image="img", options=ContainerOptions(uidmap=OTHER, gidmap=OTHER))
    plain = store.create_container(image="img")
    mapped = store.image("img").mapped_layers
    parents = [store.layer(c.layer).parent for c in (first, second, third, plain)]
    assert parents == [mapped[0], mapped[0], mapped[1], image.layer]
    assert owner(store, first.layer, "file7") == (300007, 300007)
    assert owner(store, third.layer, "file0") == (500000, 500000)
    assert owner(store, plain.layer, "file7") == (7, 7)
    assert (first.uidmap, plain.uidmap) == (MAP, ())
    for container in (first, second, third, plain):
        store.delete_container(container.id)
    assert store.delete_image("img") == [*mapped, image.layer]
    assert store.layers() == []


def test_removing_a_mapped_copy_takes_it_out_of_the_image(store, image):
    container = store.create_container(image="img", options=ContainerOptions(uidmap=MAP, gidmap=MAP))
    mapped = store.image("img").mapped_layers[0]
    store.delete_container(container.id)
    store.delete_layer(mapped)
    assert store.image("img").mapped_layers == ()
    assert [image.id for image in store.images_by_top_layer("base")] == [image.id]


def test_mapped_copy_gives_the_same_archive(store, image):
    data = archive(0, 7).read()
    container = store.create_container(image="img", options=ContainerOptions(uidmap=MAP, gidmap=MAP))
    with store.diff(store.layer(container.layer).parent) as stream:
        assert stream.read() == data
    assert store.changes(container.id) == []


def test_mapped_image_is_mounted_with_the_hosts_owners(store):
    mapped = LayerOptions(uidmap=MAP, gidmap=MAP)
    layer, _ = store.put_layer(archive(0, 7), options=mapped)
    store.create_image(names=["img"], layer=layer.id)
    path = store.mount_image("img")
    assert os.lstat(path / "file7").st_uid == 7
    (copy,) = store.image("img").mapped_layers
    assert store.mounted(copy) == 1
    assert store.mount_image("img") == path
    assert store.unmount_image("img") is True
    assert store.unmount_image("img") is False
    with pytest.raises(LayerNotMounted):
        store.unmount_image("img")
    assert store.delete_image("img") == [copy, layer.id]
    assert store.check() == []


def test_store_wide_mapping_applies_to_base_layers(options):
    from dataclasses import replace

    with Store(replace(options, uidmap=MAP, gidmap=MAP)) as store:
        container = store.create_container()
        assert store.layer(container.layer).uidmap == MAP
        assert store.layer_path(container.layer).stat().st_uid == 300000


@pytest.mark.parametrize(
    "bad",
    [
        (IDMap(0, 0, 0),),
        (IDMap(0, 100, 10), IDMap(5, 200, 10)),
        (IDMap(0, 100, 10), IDMap(50, 105, 10)),
        (IDMap(0, 2**32 - 2, 10),),
        (IDMap(-1, 0, 1),),
    ],
)
def test_impossible_mappings_are_refused(store, bad):
    with pytest.raises(InvalidMappings):
        store.create_container(options=ContainerOptions(uidmap=bad, gidmap=MAP))
    with pytest.raises(InvalidMappings):
        store.create_layer(options=LayerOptions(gidmap=bad))
    assert list(store.driver.layer_ids()) == []


def test_labels_go_together(store):
    with pytest.raises(BadValue):
        store.create_container(options=ContainerOptions(mount_label="x"))


def test_parent_owners_of_a_mapped_layer(store):
    layer = store.create_layer(options=LayerOptions(uidmap=MAP, gidmap=MAP))
    with pytest.raises(LayerNotMounted):
        store.layer_parent_owners(layer.id)
    store.mount(layer.id)
    assert store.layer_parent_owners(layer.id) == ([0], [0])
    container = store.create_container()
    assert store.container_parent_owners(container.id) == ([], [])


# -- automatic user namespaces -------------------------------------------------------------------


@pytest.fixture
def subids(monkeypatch, tmp_path) -> Path:
    """A private /etc/subuid and /etc/subgid."""
    path = tmp_path / "subid"
    path.write_text("other:1:5\nnested:100000:3000\nnested:200000:3000\n")
    real = subordinate_ids
    monkeypatch.setattr("store.idmaps.subordinate_ids", lambda _, user: real(path, user))
    return path


def test_automatic_namespaces_do_not_overlap(store, subids):
    auto = ContainerOptions(auto_userns=AutoUserNs(size=2000))
    first = store.create_container(options=auto)
    second = store.create_container(options=auto)
    assert first.uidmap == first.gidmap == (IDMap(0, 100000, 2000),)
    assert second.uidmap == (IDMap(0, 102000, 1000), IDMap(1000, 200000, 1000))
    assert store.layer(second.layer).uidmap == second.uidmap
    store.create_container(options=auto)
    with pytest.raises(NoAvailableIDs):
        store.create_container(options=auto)
    store.delete_container(first.id)
    assert store.create_container(options=auto).uidmap == first.uidmap


def test_automatic_size_comes_from_image(store, subids):
    users = "root:x:0:0::/:/bin/sh\napp:x:1200:300::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    layer, _ = store.put_layer(archive(0, 700, passwd=users))
    image = store.create_image(layer=layer.id)
    auto = ContainerOptions(auto_userns=AutoUserNs())
    assert store.create_container(image=image.id, options=auto).uidmap == (IDMap(0, 100000, 1201),)
    assert store.create_container(options=auto).uidmap == (IDMap(0, 101201, 100),)
    big, _ = store.put_layer(archive(9000))
    with pytest.raises(NoAvailableIDs, match="auto-userns-max-size"):
        store.create_container(image=store.create_image(layer=big.id).id, options=auto)


def test_automatic_namespace_keeps_additional_mappings(store, subids):
    extra = (IDMap(1000, 100000, 1),)
    auto = AutoUserNs(size=2000, additional_uidmap=extra)
    container = store.create_container(options=ContainerOptions(auto_userns=auto))
    assert container.uidmap == (
        IDMap(0, 100001, 1000),
        IDMap(1001, 101001, 999),
        IDMap(1000, 100000, 1),
    )


def test_subordinate_ids_by_name_and_number(tmp_path):
    path = tmp_path / "subuid"
    path.write_text("# comment\nroot:10:5\n0:20:5\nother:30:5\nroot:x:1\nroot:1\n")
    assert subordinate_ids(path, "root") == [Range(10, 15), Range(20, 25)]
    assert subordinate_ids(tmp_path / "none", "root") == []


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=5)


@given(ranges, ranges)
def test_free_ranges_are_exactly_what_is_not_used(available, used):
    have = sorted(available)
    disjoint = [Range(a, a + n) for i, (a, n) in enumerate(have) if all(a >= b + m for b, m in have[:i])]
    taken = [Range(a, a + n) for a, n in used]
    free = {n for low, high in free_ranges(disjoint, taken) for n in range(low, high)}
    assert free == {n for r in disjoint for n in range(*r)} - {n for r in taken for n in range(*r)}


@given(ranges, st.integers(1, 50))
def test_pack_maps_every_id_once_or_refuses(available, size):
    have = sorted(available)
    disjoint = [Range(a, a + n) for i, (a, n) in enumerate(have) if all(a >= b + m for b, m in have[:i])]
    try:
        maps = pack(size, disjoint)
    except NoAvailableIDs:
        assert sum(high - low for low, high in disjoint) < size
        return
    inside = [n for m in maps for n in range(m.container_id, m.container_id + m.size)]
    outside = [n for m in maps for n in range(m.host_id, m.host_id + m.size)]
    assert inside == list(range(size))
    assert len(set(outside)) == size
    assert set(outside) <= {n for r in disjoint for n in range(*r)}


def test_ranges_of_mapping_text():
    assert idranges.parse_mappings("0:100000:65536") == (IDMap(0, 100000, 65536),)
    two = (IDMap(0, 1000, 10), IDMap(20, 3000, 5))
    assert (
        idranges.parse_mappings("0:1000:10, 20:3000:5")
        == idranges.parse_mappings("0:1000:10:20:3000:5")
        == two
    )
