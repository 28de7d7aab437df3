"""Names, metadata, big data and private directories of layers, images and containers."""

from __future__ import annotations

import hashlib
import json

import pytest

from store import bigdata
from store.errors import (
    BadBigDataKey,
    BadName,
    BadValue,
    BigDataUnknown,
    NotAnID,
)
from store.store import BigData, ImageOptions

# -- names and metadata --------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["create_layer", "create_image", "create_container"])
def test_set_names_moves_a_name_from_its_owner(store, make):
    first = getattr(store, make)(names=["a", "b"])
    second = getattr(store, make)(names=["gone"])
    store.set_names(second.id, ["b", "b", "d"])
    assert store.names(first.id) == ["a"]
    assert store.names(second.id) == ["b", "d"]
    assert store.lookup("b") == second.id
    assert not store.exists("gone")


def test_add_names_go_first_and_remove_takes_them_away(store):
    container = store.create_container(names=["a"])
    store.add_names("a", ["b", "c"])
    assert store.names(container.id) == ["b", "c", "a"]
    store.remove_names("a", ["c", "nobody"])
    assert store.names(container.id) == ["b", "a"]
    with pytest.raises(BadName):
        store.set_names("a", [""])


def test_image_remembers_names_it_had(store):
    image = store.create_image(names=["a"])
    assert image.names_history == ()
    store.set_names("a", ["b"])
    store.set_names("b", ["c", "b"])
    assert store.image("c").names_history == ("b", "c")


def test_metadata_of_each_kind(store):
    for record in (store.create_layer(), store.create_image(), store.create_container()):
        store.set_metadata(record.id, "<text>")
        assert store.metadata(record.id) == "<text>"
    with pytest.raises(NotAnID):
        store.set_metadata("nobody", "")


# -- big data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("manifest", "manifest"),
        ("abcA", "abcA"),
        ("keyé", "keyé"),
        ("aBc", "=YUJj"),
        ("manifest-x", "=bWFuaWZlc3QteA=="),
        ("sha256:", "sha256:"),
        ("sha256:a", "=c2hhMjU2OmE="),
        ("a.b", "a.b"),
    ],
)
def test_big_data_file_names_are_the_originals(key, name):
    assert bigdata.file_name(key) == name


@pytest.mark.parametrize("key", ["", ".", "..", "/", "a/", "xy?Zq", "a\0", "B" * 200])
def test_big_data_key_without_safe_file_name_is_refused(store, key):
    with pytest.raises(BadBigDataKey):
        bigdata.file_name(key)
    image = store.create_image(names=["a"])
    with pytest.raises(BadBigDataKey):
        store.set_image_big_data("a", key, b"x")
    with pytest.raises(BadBigDataKey):
        store.create_image(options=ImageOptions(big_data=[BigData(key, b"x")]))
    assert store.images() == [image]


def test_image_big_data_records_size_and_digest(store):
    image = store.create_image(names=["a"])
    store.set_image_big_data("a", "Config", b"{}")
    store.set_image_big_data("a", "empty", b"")
    digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert store.list_image_big_data("a") == ["Config", "empty"]
    assert store.image_big_data("a", "Config") == b"{}"
    assert store.image_big_data_size("a", "Config") == 2
    assert store.image_big_data_digest("a", "Config") == digest
    assert store.image(image.id).digest == ""
    with pytest.raises(BigDataUnknown):
        store.image_big_data("a", "nothing")


def test_image_manifest_sets_digest_found_by_digest(store):
    image = store.create_image(options=ImageOptions(big_data=[("manifest", b"{}")]))
    digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert image.digest == digest
    assert store.images_by_digest(digest) == [image]
    store.set_image_big_data(image.id, "manifest-2", b"[]", "sha256:" + "1" * 64)
    assert store.image(image.id).digests == (digest, "sha256:" + "1" * 64)
    assert [i.id for i in store.images_by_digest("sha256:" + "1" * 64)] == [image.id]


def test_signed_schema_1_manifest_is_known_by_its_payload():
    payload = b'{\n   "schemaVersion": 1,\n   "name": "x"'
    protected = json.dumps({"formatLength": len(payload), "formatTail": "Cn0"}).encode()
    import base64

    encoded = base64.urlsafe_b64encode(protected).rstrip(b"=").decode()
    signed = payload + b',\n   "signatures": [{"protected": "' + encoded.encode() + b'"}]\n}'
    assert bigdata.manifest_digest(signed) == "sha256:" + hashlib.sha256(payload + b"\n}").hexdigest()


def test_layer_and_container_big_data(store):
    layer = store.create_layer()
    store.set_layer_big_data(layer.id, "k", b"data")
    assert store.layer_big_data(layer.id, "k") == b"data"
    assert store.list_layer_big_data(layer.id) == ["k"]
    container = store.create_container()
    store.set_container_big_data(container.id, "k", b"more")
    assert store.container_big_data(container.id, "k") == b"more"
    assert store.container_big_data_size(container.id, "k") == 4
    assert store.container_big_data_digest(container.id, "k") == bigdata.digest_of(b"more")


def test_private_directory_files_stay_inside(store):
    container = store.create_container()
    store.set_container_directory_file(container.id, "a/b", b"1")
    store.set_container_run_directory_file(container.id, "c", b"2")
    assert store.from_container_directory(container.id, "a/b") == b"1"
    assert store.from_container_run_directory(container.id, "c") == b"2"
    for bad in ("../x", "/x", ""):
        with pytest.raises(BadName):
            store.set_container_directory_file(container.id, bad, b"")


def test_image_directories_are_private_and_go_with_the_image(store):
    image = store.create_image(names=["img"])
    persistent, run = store.image_directory("img"), store.image_run_directory("img")
    assert persistent == store.graphroot / "btrfs-images" / image.id / "userdata"
    assert {path.stat().st_mode & 0o777 for path in (persistent, run)} == {0o700}
    store.delete_image("img")
    assert not persistent.exists()
    assert not run.parent.exists()


def test_digest_lock_is_where_other_tools_look(store):
    digest = "sha256:" + "a" * 64
    with store.digest_lock(digest).writing(1):
        assert (store.runroot / "btrfs-locks" / digest).exists()
        assert store.digest_lock(digest).held()
    assert not store.digest_lock(digest).held()
    with pytest.raises(BadValue):
        store.digest_lock("../escape")
