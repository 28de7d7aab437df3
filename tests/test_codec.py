"""Records to JSON and back, byte for byte as containers/storage writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.idmap import IDMap
from store import codec
from store.errors import BadRecord, BadValue
from store.records import Container, Image, Layer, MountPoint, decode, encode

DATA = Path(__file__).parent / "data" / "tables"
ID = "ab" * 32
SAMPLES = [
    ("layers.json", Layer),
    ("images.json", Image),
    ("containers.json", Container),
    ("mapped-images.json", Image),
    ("mapped-containers.json", Container),
]


@pytest.mark.parametrize(("name", "cls"), SAMPLES)
def test_encode_of_decoded_sample_gives_same_bytes(name, cls):
    data = (DATA / name).read_bytes()
    values, spans = codec.scan_array(data.decode())
    text = "[" + ",".join(encode(decode(cls, value)) for value in values) + "]"
    assert codec.to_bytes(text) == data.rstrip(b"\n")
    assert values == json.loads(data)
    assert [data.decode()[a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)] == [
        encode(decode(cls, value)) for value in values
    ]


def test_decode_sample_fills_every_field():
    layers = [decode(Layer, value) for value in json.loads((DATA / "layers.json").read_bytes())]
    base = next(layer for layer in layers if "base" in layer.names)
    assert (base.diff_size, base.uids, base.gids) == (30720, (0, 1000), (0, 50))
    assert base.diff_digest == base.compressed_digest != ""
    assert next(layer for layer in layers if layer.names == ("up1",)).big_data_names == ("lkey",)
    mapped = decode(Container, json.loads((DATA / "mapped-containers.json").read_bytes())[0])
    assert mapped.uidmap == (IDMap(0, 300000, 65536),)
    assert mapped.mount_label == "" == mapped.process_label


def test_unknown_keys_keep_value_and_place_when_record_changes():
    text = (
        f'{{"x-first":[1,{{"b":1,"a":2}}],"id":"{ID}","x-mid":null,'
        '"created":"2026-01-01T00:00:00Z","x-last":"<"}'
    )
    layer = decode(Layer, json.loads(text))
    assert encode(layer) == text.replace("<", "\\u003c")
    named = encode(replace(layer, names=("n",), diff_size=7))
    assert named == (
        f'{{"x-first":[1,{{"b":1,"a":2}}],"id":"{ID}","x-mid":null,"names":["n"],'
        '"created":"2026-01-01T00:00:00Z","x-last":"\\u003c","diff-size":7}'
    )


def test_toc_digest_of_newer_tools_is_between_diff_digest_and_size():
    text = encode(Layer(id=ID, diff_digest="sha256:d", toc_digest="sha256:t", diff_size=-1))
    assert '"diff-digest":"sha256:d","toc-digest":"sha256:t","diff-size":-1' in text


def test_keys_in_other_case_and_null_are_read_as_go_reads_them():
    layer = decode(Layer, {"ID": ID, "Parent": "p", "names": None, "flags": None})
    assert (layer.id, layer.parent, layer.names, dict(layer.flags)) == (ID, "p", (), {})
    assert layer.extra == ()


def test_missing_created_is_year_one_and_always_written():
    layer = decode(Layer, {"id": ID})
    assert encode(layer) == f'{{"id":"{ID}","created":"0001-01-01T00:00:00Z"}}'
    assert layer.created_ns == -62135596800 * 10**9


def test_unknown_key_of_a_mount_point_is_ignored():
    assert decode(MountPoint, {"id": ID, "path": "/x", "count": 1, "new": 2}).count == 1


def test_container_without_image_and_layer_writes_both_keys():
    assert encode(Container(id=ID)) == (
        f'{{"id":"{ID}","image":"","layer":"","created":"0001-01-01T00:00:00Z"}}'
    )


def test_strings_are_escaped_as_go_escapes_them():
    text = codec.dumps('<a href="x">&\u2028\u2029\\b \b\f\n\t\r\x01é/')
    assert text == (
        '"\\u003ca href=\\"x\\"\\u003e\\u0026\\u2028\\u2029\\\\b \\u0008\\u000c\\n\\t\\r\\u0001é/"'
    )
    assert codec.to_bytes(codec.dumps("\ud800")) == '"\ufffd"'.encode()


def test_map_keys_are_sorted_by_bytes_and_large_numbers_kept():
    flags = {"b": 1, "a": 12345678901234567890, "é": 2, "Z": {"y": 1, "x": 2}}
    text = encode(Layer(id=ID, flags=flags))
    assert '"flags":{"Z":{"x":2,"y":1},"a":12345678901234567890,"b":1,"é":2}' in text


@pytest.mark.parametrize(
    "bad",
    [
        [],
        "text",
        7,
        {},
        {"id": ""},
        {"id": 7},
        {"id": ID, "names": "n"},
        {"id": ID, "names": [1]},
        {"id": ID, "diff-size": "1"},
        {"id": ID, "diff-size": True},
        {"id": ID, "uidmap": [{"container_id": 0}]},
        {"id": ID, "uidset": [1.5]},
        {"id": ID, "flags": []},
    ],
)
def test_decode_of_malformed_record_is_refused(bad):
    with pytest.raises(BadRecord):
        decode(Layer, bad)


@pytest.mark.parametrize("text", ["{}", "[1", "[1,]", "[1 2]", "[1]x", '"x"', "[", "[{]", "nonsense"])
def test_scan_of_text_that_is_no_array_is_refused(text):
    with pytest.raises(ValueError, match=r"\S"):
        codec.scan_array(text)


@pytest.mark.parametrize("text", ["", "  \n", "null", "[]", " [ ] \n"])
def test_scan_of_empty_table_gives_nothing(text):
    assert codec.scan_array(text) == ([], [])


def test_scan_with_spaces_finds_every_element():
    values, spans = codec.scan_array(' [ {"a": 1} ,\n{"b":2}  ] ')
    assert values == [{"a": 1}, {"b": 2}]
    assert spans == [3, 11, 14, 21]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=5))
def test_any_written_array_is_read_back_equal(values):
    text = "[" + ",".join(codec.dumps(value) for value in values) + "]"
    assert codec.scan_array(text)[0] == values == json.loads(text)


names = st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple)


@given(names, st.text(), st.dictionaries(st.text(), json_values, max_size=3), st.integers(0, 2**62))
def test_any_record_is_read_back_equal(some_names, text, flags, size):
    layer = Layer(id=ID, names=some_names, metadata=text, flags=flags, diff_size=size, uids=(0, size))
    assert decode(Layer, json.loads(encode(layer))) == layer
    image = Image(id=ID, names_history=some_names, big_data_sizes={text: size}, big_data_digests={text: "d"})
    assert decode(Image, json.loads(encode(image))) == image
    mount = MountPoint(id=ID, path=text, count=size)
    assert decode(MountPoint, json.loads(encode(mount))) == mount


# -- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-22T12:06:32.05040711Z", 1795349192050407110),
        ("2026-11-22T14:06:32.05040711+02:00", 1795349192050407110),
        ("2026-11-22T11:36:32.05040711-00:30", 1795349192050407110),
        ("0001-01-01T00:00:00Z", -62135596800 * 10**9),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_parse_time_keeps_nanoseconds_and_offset(text, ns):
    assert codec.parse_time(text) == ns


@pytest.mark.parametrize(
    "text", ["", "today", "2026-02-30T00:00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00"]
)
def test_parse_time_of_other_text_is_refused(text):
    with pytest.raises(BadValue):
        codec.parse_time(text)


@given(st.integers(-62135596800 * 10**9, 253402300799 * 10**9))
def test_any_time_is_read_back_equal(ns):
    text = codec.format_time(ns)
    assert codec.parse_time(text) == ns
    assert not text.endswith("0Z") or "." not in text
