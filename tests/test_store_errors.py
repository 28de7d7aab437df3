"""Every error class of the store and its drivers is really raised, and told as it should be.

Where containers-storage has the condition, both command lines are asked: exit status and text must agree.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from drivers import errors as driver
from store import errors
from store.config import StoreOptions
from store.history import History
from store.store import Store
from store.trash import Trash
from tests.support.error_cases import BASE_TAR, CASES, Case, Given
from tests.support.features import require
from tests.support.storage_scripts import FILL, IDS
from tests.support.storage_sides import Side, both, differences, is_log, make_files

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_THERE = {
    errors.InvalidMappings: "containers-storage accepts ranges that overlap or are empty",
    errors.NoAvailableIDs: "its commands ask for no automatic user namespace",
    errors.StoreReadOnly: "its commands look in the store they may write only",
    errors.LayerNotMounted: "its commands unmount what is not mounted in silence",
}
"""Conditions of containers/storage that its command line does not meet, and why."""


@pytest.fixture(scope="module")
def given(home: Path) -> Iterator[Given]:
    options = StoreOptions(
        graphroot=str(home / "g"), runroot=str(home / "r"), driver="btrfs", root_auto_userns_user="nobody"
    )
    beside = replace(
        options,
        graphroot=str(home / "g2"),
        runroot=str(home / "r2"),
        additional_image_stores=(options.graphroot,),
    )
    with Store(options) as store, Store(beside) as second:
        base, _ = store.put_layer(io.BytesIO(BASE_TAR), names=["base"])
        twin, _ = store.put_layer(io.BytesIO(BASE_TAR), names=["twin"])
        child = store.create_layer(names=["child"], parent=base.id)
        store.create_image(names=["img"], layer=child.id)
        store.create_image(names=["other"], layer=twin.id)
        store.create_image(names=["hollow"])
        store.create_container(names=["web"], image="img")
        store.create_container(names=["empty"])
        history = History(store)
        with contextlib.closing(history.state):
            history.take("web", "one")
            yield Given(home, store, history, Trash(history), second)


def classes() -> list[type[Exception]]:
    found = []
    for module, base in ((errors, errors.StoreError), (driver, driver.DriverError)):
        members = (cls for _, cls in inspect.getmembers(module, inspect.isclass))
        found += [cls for cls in members if issubclass(cls, base) and cls.__module__ == module.__name__]
    return found


def test_every_class_is_raised_by_a_case_or_is_a_base_of_others() -> None:
    raised = {case.error for case in CASES}
    for cls in classes():
        assert bool(cls.__subclasses__()) is not (cls in raised), f"{cls} needs a case, or is never raised"
    told = {case.error for case in CASES if case.line} | NOT_THERE.keys()
    assert [cls for cls in classes() if getattr(cls, "original", "") and cls not in told] == []
    assert not NOT_THERE.keys() & {case.error for case in CASES if case.line}


def name(case: Case) -> str:
    return f"{case.error.__name__}-{case.line}" if case.line else case.error.__name__


@pytest.mark.parametrize("case", CASES, ids=name)
def test_condition_is_raised_by_a_call_that_changes_nothing(case: Case, given: Given) -> None:
    before = tables(given.store)
    with pytest.raises(case.error) as caught:
        case.call(given)
    assert type(caught.value) is case.error
    assert case.says in str(caught.value)
    assert tables(given.store) == before


def tables(store: Store) -> dict[str, list[dict[str, Any]]]:
    paths = {
        kind: store.table_directory(kind) / f"{kind}.json" for kind in ("layers", "images", "containers")
    }
    found = {kind: json.loads(path.read_bytes()) for kind, path in paths.items()}
    return {kind: sorted(records, key=lambda record: record["id"]) for kind, records in found.items()}


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sides(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Both programs after ``FILL``, with a file of layer B altered, and box mounted."""
    require("containers-storage")
    files = make_files(tmp_path_factory.mktemp("files"))
    pair = both(home / "told", "btrfs", files)
    assert not differences(*pair, [*FILL, "mount box"])
    for side in pair:
        for place in ("tmpfs", "several/btrfs", "several/overlay"):
            (side.home / place).mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", side.home / "tmpfs"], check=True)
        (side.home / "g/btrfs/subvolumes" / IDS["B"] / "d/file").write_text("two\n")
        box = json.loads((side.home / "g/btrfs-containers/containers.json").read_text())[0]
        places = {place: str(side.home / place) for place in ("tmpfs", "several")}
        side.files = {**files, **places, "box": box["layer"]}
    return pair


@pytest.mark.parametrize("case", [case for case in CASES if case.line], ids=name)
def test_condition_is_told_as_the_original_tells_it(case: Case, sides: tuple[Side, Side]) -> None:
    ours, real = (side.start(case.line) for side in sides)
    (code, out, err), theirs = ours(), real()
    said = theirs[1]
    if case.error is driver.SeveralDrivers:  # named in random order there
        said = said.replace("overlay, btrfs", "btrfs, overlay")
    assert (code, out, err) == (theirs[0], said, without_log(theirs[2]))
    assert code == 1
    assert (case.answer or getattr(case.error, "original", "")) in out + err


def without_log(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not is_log(line))
