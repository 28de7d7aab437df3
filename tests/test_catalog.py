"""The lock-free view of a store: lookups, relations, and when it changes."""

from __future__ import annotations

import json
import time

import pytest

from store import codec, names
from store.catalog import Catalog
from store.containers import ContainerView
from store.errors import BadName
from store.images import ImageTable, ImageView
from store.layers import LayerTable, LayerView, MountView
from store.records import Container, Image, Layer, MountPoint, encode
from store.watching import differing

A, B, C, D = ("a1" * 32, "a2" * 32, "b3" * 32, "c4" * 32)


def view(cls, *records):
    return cls({record.id: record for record in records})


@pytest.fixture
def catalog() -> Catalog:
    layers = view(
        LayerView,
        Layer(id=A, names=("base",), diff_digest="sha256:d", compressed_digest="sha256:c"),
        Layer(id=B, parent=A),
        Layer(id=C, parent=B),
        Layer(id=D, flags={"incomplete": True}),
    )
    images = view(
        ImageView,
        Image(id=A, names=("docker.io/library/alpine:latest",), layer=A, digest="sha256:" + "7" * 64),
        Image(id=B, names=("localhost/web:1", "quay.io/org/web:2"), layer=B, mapped_layers=(C,)),
        Image(id=C, names=("localhost/alpine:edge",), layer=B, big_data_digests={"manifest": "sha256:m"}),
    )
    containers = view(ContainerView, Container(id=D, names=("web",), image=B, layer=C))
    return Catalog((layers,), (images,), containers, view(MountView, MountPoint(id=C, path="/x", count=2)))


def test_incomplete_layers_are_left_out(catalog):
    assert [layer.id for layer in catalog.layers] == [A, B, C]
    assert catalog.layer(D) is None
    assert catalog.find_layer(D) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (A, A),
        ("base", A),
        ("a1a", A),
        ("b3b", C),
        ("a1", None),
        ("sha256:d", A),
        ("sha256:c", A),
        ("BAS", None),
        ("", None),
    ],
)
def test_find_layer(catalog, text, found):
    layer = catalog.find_layer(text)
    assert (layer.id if layer else None) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("docker.io/library/alpine:latest", A),
        ("alpine", A),
        ("library/alpine", A),
        ("docker.io/alpine", A),
        ("alpine:edge", C),
        ("localhost/alpine:edge", C),
        ("alpine:latest", A),
        ("web:1", B),
        ("org/web:2", B),
        ("web:2", B),
        ("web", None),
        ("eb:1", None),
        ("sha256:" + "7" * 64, A),
        ("sha256:" + A, A),
        ("sha256:m", C),
        ("alpine@sha256:" + "7" * 64, A),
        ("web@sha256:" + "7" * 64, None),
        ("a2a", B),
        ("a2", None),
        ("Not A Name", None),
    ],
)
def test_find_image(catalog, text, found):
    image = catalog.find_image(text)
    assert (image.id if image else None) == found


def test_find_container_by_name_id_prefix_and_layer(catalog):
    for text in ("web", D, "c4c", C):
        assert catalog.find_container(text).id == D
    assert catalog.find_container("b3b3") is None


def test_relations(catalog):
    assert [layer.id for layer in catalog.chain(C)] == [A, B, C]
    assert [layer.id for layer in catalog.children(A)] == [B]
    assert [image.id for image in catalog.images_on(B)] == [B, C]
    assert [image.id for image in catalog.images_on(C)] == [B]
    assert [c.id for c in catalog.containers_of(B)] == [D] == [c.id for c in catalog.containers_on(C)]
    assert (catalog.mount_count(C), catalog.mount_count(A)) == (2, 0)
    assert catalog.containers_of("") == [] == catalog.containers_on("")


def test_chain_in_a_circle_ends():
    layers = view(LayerView, Layer(id=A, parent=B), Layer(id=B, parent=A))
    catalog = Catalog((layers,), (view(ImageView),), view(ContainerView), view(MountView))
    assert [layer.id for layer in catalog.chain(A)] == [B, A]


def test_primary_store_wins_over_additional_ones():
    first, second = view(ImageView, Image(id=A, names=("a",))), view(ImageView, Image(id=A), Image(id=B))
    catalog = Catalog((view(LayerView),), (first, second), view(ContainerView), view(MountView))
    assert [(i.id, i.names) for i in catalog.images] == [(A, ("a",)), (B, ())]


# -- tables on disk ------------------------------------------------------------------------------


def write(path, records) -> None:
    new = path.with_suffix(".new")
    new.write_text("[" + ",".join(map(encode, records)) + "]")
    new.rename(path)


def test_peek_gives_the_same_view_until_the_file_is_replaced(tmp_path):
    table = ImageTable(tmp_path)
    assert len(table.peek()) == 0
    write(tmp_path / "images.json", [Image(id=A)])
    first = table.peek()
    assert first is table.peek()
    assert first.changed_ns == (tmp_path / "images.json").stat().st_mtime_ns
    write(tmp_path / "images.json", [Image(id=B)])
    assert [i.id for i in table.peek()] == [B]
    assert [i.id for i in first] == [A]
    (tmp_path / "images.json").unlink()
    assert len(table.peek()) == 0


def test_empty_and_missing_and_null_tables_are_empty(tmp_path):
    table = ImageTable(tmp_path)
    for text in ("", "null", "[]"):
        (tmp_path / "images.json").write_text(text)
        assert (len(table.peek()), table.peek().broken) == (0, ())


def test_view_after_a_save_equals_what_another_reader_parses(tmp_path):
    table, other = ImageTable(tmp_path), ImageTable(tmp_path)
    write(tmp_path / "images.json", [Image(id=A, names=("a",)), Image(id=B), Image(id=C)])
    with table.writing() as draft:
        draft.remove(B)
        draft.put(Image(id=A, names=("x", "yyyy")))
        draft.add(Image(id=D))
        draft.flush()
        draft.remove(C)
    assert table.peek().records == other.peek().records
    with table.writing() as draft:  # the offsets after a save are those of the new file
        draft.add(Image(id=B, metadata="é<"))
    assert [i.id for i in ImageTable(tmp_path).peek()] == [A, D, B] == [i.id for i in table.peek()]
    assert json.loads((tmp_path / "images.json").read_bytes())[2]["metadata"] == "é<"


def reading(table: ImageTable) -> Catalog:
    """What a store shows that has these images, and nothing else."""
    return Catalog((LayerView({}),), (table.peek(),), ContainerView({}), MountView({}))


def test_what_differs_after_saves_is_found_as_a_comparison_finds_it(tmp_path):
    table = ImageTable(tmp_path)
    write(tmp_path / "images.json", [Image(id=A, names=("a",)), Image(id=B), Image(id=C)])
    before = reading(table)
    with table.writing() as draft:
        draft.remove(B)
        draft.add(Image(id=D))
        draft.flush()
        draft.put(Image(id=A, names=("x",)))
        draft.put(Image(id=C, metadata="for a moment"))
    with table.writing() as draft:
        draft.put(Image(id=C))
        draft.add(Image(id=B, metadata="made again"))
    after = reading(table)
    assert after.changed_since(before, "images") == {A, B, C, D}
    assert after.changed_since(reading(ImageTable(tmp_path)), "images") is None
    assert differing(before, after, "images") == [A, D, B]
    assert differing(before, reading(ImageTable(tmp_path)), "images") == [A, D, B]
    assert differing(after, before, "images") == [A, B, D]


def test_what_differs_after_more_saves_than_are_remembered_is_found_by_a_comparison(tmp_path):
    table = ImageTable(tmp_path)
    write(tmp_path / "images.json", [Image(id=A), Image(id=B)])
    before = reading(table)
    for number in range(40):
        with table.writing() as draft:
            draft.put(Image(id=A, metadata=str(number)))
    assert reading(table).changed_since(before, "images") is None
    assert differing(before, reading(table), "images") == [A]


def test_draft_of_a_shared_lock_cannot_change_anything(tmp_path):
    table = ImageTable(tmp_path)
    with table.reading() as draft, pytest.raises(RuntimeError):
        draft.add(Image(id=A))


def test_exception_in_a_transaction_saves_nothing(tmp_path):
    table = ImageTable(tmp_path)
    with pytest.raises(KeyError), table.writing() as draft:
        draft.put(draft.add(Image(id=B)) and Image(id=A))
    assert not (tmp_path / "images.json").exists()
    assert len(table.peek()) == 0


def test_ten_thousand_layers_are_read_and_changed_quickly(tmp_path):
    digest = "sha256:" + "0" * 64
    layers = [
        Layer(
            id=f"{number:064x}",
            parent=f"{number - 1:064x}" if number % 7 else "",
            created=codec.now(),
            diff_digest=digest,
            diff_size=1,
            compressed_digest=digest,
            uids=(0,),
            gids=(0,),
        )
        for number in range(10_000)
    ]
    write(tmp_path / "layers.json", layers)
    started = time.process_time()
    table = LayerTable(tmp_path, tmp_path)
    assert len(list(table.peek())) == 10_000
    opened = time.process_time() - started
    with table.writing() as draft:
        started = time.process_time()
        draft.add(Layer(id="f" * 64))
        draft.flush()
        saved = time.process_time() - started
    assert opened < 1.0
    assert saved < opened, "a save must not cost as much as reading everything again"
    assert LayerTable(tmp_path, tmp_path).peek().records == table.peek().records


# -- image names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("web", "localhost/web:latest"),
        ("web:1", "localhost/web:1"),
        ("org/web", "localhost/org/web:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/org/x:1", "docker.io/org/x:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("quay.io/a/b@sha256:" + "a" * 64, "quay.io/a/b@sha256:" + "a" * 64),
        ("a__b-c.d/e", "localhost/a__b-c.d/e:latest"),
    ],
)
def test_normalize_as_podman_tags(text, full):
    assert names.normalize(text) == full


@pytest.mark.parametrize(
    "bad", ["", "Web", "a//b", "a/", ":1", "a b", "a:b:c/d:", "-a", "a@sha256:12", "x:" + "t" * 129]
)
def test_normalize_of_what_is_no_image_name_is_refused(bad):
    with pytest.raises(BadName):
        names.normalize(bad)
