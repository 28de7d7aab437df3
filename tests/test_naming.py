"""Where objects are listed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fsd.naming import parents, place, usable

NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", "", "x" * 256]), min_size=1, max_size=3).map("/".join)
OBJECTS = st.lists(st.lists(NAMES, max_size=2), max_size=6).map(
    lambda all_: [(f"id{n}", names) for n, names in enumerate(all_)]
)


def test_place_object_without_names_is_listed_under_its_id():
    places = place([("f00", ())])
    assert places.objects == {"f00": "f00"}
    assert list(places.listings[""]) == ["f00"]


def test_place_name_with_slashes_makes_nested_directories():
    places = place([("1", ["docker.io/library/alpine:latest"])])
    assert list(places.listings[""]) == ["docker.io"]
    assert list(places.listings["docker.io/library"]) == ["alpine:latest"]
    assert places.paths["1"] == "docker.io/library/alpine:latest"


def test_place_name_that_is_a_directory_of_another_falls_back_to_the_id():
    places = place([("1", ["foo"]), ("2", ["foo/bar"])])
    assert places.objects == {"1": "1", "foo/bar": "2"}


def test_place_name_that_cannot_be_a_path_falls_back_to_the_id():
    places = place([("1", ["../x"]), ("2", ["a//b"]), ("3", ["y" * 256])])
    assert places.objects == {"1": "1", "2": "2", "3": "3"}


def test_place_reserved_first_component_falls_back_to_the_id():
    assert place([("1", [".import/x"])], reserved=frozenset({".import"})).objects == {"1": "1"}


def test_place_directories_of_other_names_exist_unlisted():
    places = place([("1", ["a:1", "q.io/z/a:1"])], aliases=["a:1", "q.io/z/a:1"])
    assert list(places.listings[""]) == ["a:1"]
    assert places.is_directory("q.io")
    assert places.is_directory("q.io/z")


@given(OBJECTS)
def test_place_lists_every_object_once_and_every_listing_is_reachable(objects):
    places = place(objects)
    assert set(places.objects.values()) == {id_ for id_, _ in objects}
    assert {path: id_ for id_, path in places.paths.items()} == places.objects
    for path in places.objects:
        assert usable(path)
        assert path not in places.listings
        for above in parents(path):
            assert above in places.listings
    for directory, names in places.listings.items():
        for name in names:
            full = f"{directory}/{name}" if directory else name
            assert (full in places.objects) != (full in places.listings)
