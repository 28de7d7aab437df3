"""Where objects are listed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fsd.naming import changed_listings, parents, place, replaced, usable

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


_TABLE = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.lists(st.sampled_from(["x", "y", "a", ".", "r"]), max_size=2)),
    max_size=6,
    unique_by=lambda entry: entry[0],
)


@given(_TABLE, _TABLE, st.sets(st.sampled_from("abcdefg")))
def test_replaced_gives_what_place_gives(table, more, gone):
    """A few changes at a time lead to the same layout as laying everything out anew."""
    reserved = frozenset({"r"})
    removed = [entry for entry in table if entry[0] in gone]
    kept = [entry for entry in table if entry[0] not in gone]
    added = [entry for entry in more if entry[0] not in {id_ for id_, _ in table}]
    before = place(table, aliases=[n for _, names in table for n in names], reserved=reserved)
    after = replaced(before, removed, added, reserved)
    whole = place(kept + added, aliases=[n for _, names in kept + added for n in names], reserved=reserved)
    assert after in (None, whole)


def test_replaced_is_used_for_a_new_object_and_its_removal():
    before = place([("1", ["x"]), ("2", [])])
    after = replaced(before, [], [("3", ["new"])])
    assert after == place([("1", ["x"]), ("2", []), ("3", ["new"])])
    assert replaced(after, [("3", ["new"])], []) == before


_PATHS = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.lists(st.sampled_from(["x", "y", "a", ".", "n/x", "n/y"]))),
    max_size=6,
    unique_by=lambda entry: entry[0],
)


@given(_PATHS, _PATHS)
def test_changed_listings_tell_each_directory_that_differs_and_what_is_gone_from_it(table, later):
    """However the objects changed, the kernel is told of every name it may hold wrongly."""
    later = [entry for entry in table if entry in later] + [entry for entry in later if entry not in table]
    before, after = place(table), place(later)
    changed = sorted(
        {id_ for id_, names in table + later if ((id_, names) in table) != ((id_, names) in later)}
    )
    told = {directory: set(gone) for directory, gone in changed_listings(before, after, changed)}
    for directory in before.listings.keys() | after.listings.keys():
        was, is_ = before.listings.get(directory, {}), after.listings.get(directory, {})
        paths = {name: f"{directory}/{name}".lstrip("/") for name in was}
        gone = {n for n, path in paths.items() if before.objects.get(path) != after.objects.get(path)}
        gone |= was.keys() - is_.keys()
        assert (directory in told) == (list(was) != list(is_) or bool(gone))
        assert told.get(directory, set()) == gone
