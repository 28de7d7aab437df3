"""The API is whole: every method of containers/storage's Store has its place, documented and tested."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from drivers.base import Driver
from store import errors
from store.store import Store

TESTS = Path(__file__).parent
DRIVERS = (TESTS.parent / "drivers" / "README.md").read_text()
README = (TESTS.parent / "store" / "README.md").read_text()
ROWS = [line.split("|")[1:4] for line in README.splitlines() if line.startswith("|")][2:]
METHODS = sorted({name for _, ours, _ in ROWS for name in re.findall(r"`([a-z][a-z_]+)`", ours)})


def sources() -> str:
    return "\n".join(path.read_text() for path in TESTS.glob("test_*.py") if path.name != Path(__file__).name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_exists_is_documented_and_used_by_a_test(name):
    if name in ("driver", "driver_name", "graphroot", "runroot"):
        return
    method = getattr(Store, name)
    assert inspect.getdoc(method), name
    assert re.search(rf"\.{name}\b", sources()), f"no test calls {name}"


def test_every_method_of_the_drivers_table_exists_and_none_is_left_out():
    own = {name for name, member in vars(Driver).items() if inspect.isfunction(member) and name[0] != "_"}
    named = set(re.findall(r"`([a-z][a-z_]+)`", DRIVERS))
    assert own | {"reconfigure", "name", "capabilities"} == named


def test_every_public_method_is_in_the_table():
    members = inspect.getmembers(Store, inspect.isfunction)
    public = {name for name, _ in members if not name.startswith("_")}
    internal = {
        "add_layer_data", "additional_tables", "adjust_owners", "ask_guard", "can_shift", "catalog",
        "check_image_unused", "check_writable", "check_layer_unused", "clean_incomplete", "clean_staging",
        "data_directory", "driver_texts", "discard_layer", "drop_half_written", "fill_layer", "grow_layer",
        "find_tar_split", "grow_tree", "held", "image_layer_for", "layer_directory", "layer_in",
        "layer_mappings", "layer_of", "layer_views", "mounts_now", "object_of", "parent_layer",
        "run_directory",
        "leftover_paths", "put_found", "settle_mappings", "split_directory", "staged_ids",
        "table_directories", "table_directory", "tar_split_path", "tar_split_paths", "transaction",
        "unmapped_copy", "unmapped_layer",
    }  # fmt: skip
    container = {name for name in public if "container_big_data" in name}
    assert public - internal - container == set(METHODS) & public


def test_every_error_is_a_store_error_and_says_what_it_means():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) > 30
    for cls in classes:
        assert issubclass(cls, errors.StoreError)
        assert cls.__doc__
        assert cls.__name__ in (errors.__doc__ or "")
