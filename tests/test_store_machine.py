"""Any sequence of operations on a store, some of them killed half way, against a model of dicts.

``python -m tests.machine DRIVER STEPS`` runs it for long.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from store import durable, replacing
from store.config import StoreOptions
from store.errors import Busy, DuplicateName, ParentIsContainer
from store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from(["one", "two", "three", "four"])
CHOICE = st.integers(0, 30)
STEPS = int(os.environ.get("FSD_MACHINE_STEPS", "25"))
EXAMPLES = int(os.environ.get("FSD_MACHINE_EXAMPLES", "8"))
_numbers = itertools.count()


class Killed(BaseException):
    """Stands for the end of the process: no handler of the store may run after it, see :func:`killed`."""


class Model:
    """What the store should hold: names, parents, images' layers and containers' layers by ID."""

    def __init__(self) -> None:
        self.layers: dict[str, str] = {}
        self.images: dict[str, str] = {}
        self.containers: dict[str, tuple[str, str]] = {}
        self.names: dict[str, dict[str, list[str]]] = {"layers": {}, "images": {}, "containers": {}}

    def owner(self, kind: str, name: str) -> str | None:
        return next((i for i, names in self.names[kind].items() if name in names), None)

    def in_use(self, layer: str) -> bool:
        return (
            layer in self.layers.values()
            or layer in self.images.values()
            or layer in (own for _, own in self.containers.values())
        )

    def drop_layer(self, layer: str) -> None:
        del self.layers[layer]
        del self.names["layers"][layer]


def pick(items, number: int):
    return list(items)[number % len(items)] if items else None


class StoreMachine(RuleBasedStateMachine):
    """One store, in a directory of a real btrfs."""

    root: Path
    driver: str
    split: bool
    steps = 0
    """Rules run so far, over all machines of the class."""

    def __init__(self) -> None:
        super().__init__()
        type(self).steps -= 1  # the invariants also hold before the first rule
        self.home = self.root / f"machine{next(_numbers)}"
        self.options = StoreOptions(
            graphroot=str(self.home / "g"),
            runroot=str(self.home / "r"),
            image_store=str(self.home / "i") if self.split else "",
            driver=self.driver,
            lock_timeout=10,
        )
        self.store = Store(self.options)
        self.model = Model()

    def teardown(self) -> None:
        self.store.wipe()
        self.store.shutdown(force=True)
        for layer in list(self.store.driver.layer_ids()):
            self.store.driver.remove(layer)
        with contextlib.suppress(OSError):
            shutil.rmtree(self.home)

    # -- rules -----------------------------------------------------------------------------------

    @rule(name=NAMES, parent=CHOICE, with_parent=st.booleans())
    def create_layer(self, name, parent, with_parent):
        base = pick(self.model.layers, parent) if with_parent else None
        containers = {own for _, own in self.model.containers.values()}
        if base in containers:
            with pytest.raises(ParentIsContainer):
                self.store.create_layer(parent=base)
            return
        if self.model.owner("layers", name):
            with pytest.raises(DuplicateName):
                self.store.create_layer(parent=base, names=[name])
            return
        layer = self.store.create_layer(parent=base, names=[name])
        self.model.layers[layer.id] = base or ""
        self.model.names["layers"][layer.id] = [name]

    @rule(name=NAMES, layer=CHOICE)
    def create_image(self, name, layer):
        containers = {own for _, own in self.model.containers.values()}
        top = pick([i for i in self.model.layers if i not in containers], layer) or ""
        if self.model.owner("images", name):
            with pytest.raises(DuplicateName):
                self.store.create_image(names=[name], layer=top)
            return
        image = self.store.create_image(names=[name], layer=top)
        self.model.images[image.id] = top
        self.model.names["images"][image.id] = [name]

    @rule(name=NAMES, image=CHOICE, with_image=st.booleans())
    def create_container(self, name, image, with_image):
        source = (pick(self.model.images, image) if with_image else None) or ""
        if self.model.owner("containers", name):
            with pytest.raises(DuplicateName):
                self.store.create_container(names=[name], image=source)
            return
        container = self.store.create_container(names=[name], image=source)
        self._add_container(container.id, source, container.layer, name)

    def _add_container(self, container: str, image: str, layer: str, name: str) -> None:
        self.model.containers[container] = (image, layer)
        self.model.names["containers"][container] = [name]
        self.model.layers[layer] = self.model.images.get(image, "")
        self.model.names["layers"][layer] = []

    @rule(number=CHOICE)
    def delete_layer(self, number):
        layer = pick(self.model.layers, number)
        if layer is None:
            return
        if self.model.in_use(layer):
            with pytest.raises(Busy):
                self.store.delete_layer(layer)
            return
        self.store.delete_layer(layer)
        self.model.drop_layer(layer)

    @rule(number=CHOICE)
    def delete_image(self, number):
        image = pick(self.model.images, number)
        if image is None:
            return
        if any(used == image for used, _ in self.model.containers.values()):
            with pytest.raises(Busy):
                self.store.delete_image(image)
            return
        top = self.model.images.pop(image)
        del self.model.names["images"][image]
        expected = []
        while top and not self.model.in_use(top):
            expected.append(top)
            parent = self.model.layers[top]
            self.model.drop_layer(top)
            top = parent
        assert self.store.delete_image(image) == expected

    @rule(number=CHOICE)
    def delete_container(self, number):
        container = pick(self.model.containers, number)
        if container is not None:
            self.store.delete_container(container)
            self._drop_container(container)

    def _drop_container(self, container: str) -> None:
        _, layer = self.model.containers.pop(container)
        del self.model.names["containers"][container]
        if layer in self.model.layers and not any(p == layer for p in self.model.layers.values()):
            self.model.drop_layer(layer)

    @rule(kind=st.sampled_from(["layers", "images", "containers"]), number=CHOICE, names=st.lists(NAMES))
    def set_names(self, kind, number, names):
        target = pick(self.model.names[kind], number)
        if target is None:
            return
        self.store.set_names(target, names)
        for other, theirs in self.model.names[kind].items():
            if other != target:
                self.model.names[kind][other] = [n for n in theirs if n not in names]
        self.model.names[kind][target] = list(dict.fromkeys(names))

    @rule()
    def reopen(self):
        self.store = Store(self.options)

    # -- the same, killed half way ---------------------------------------------------------------

    @rule(name=NAMES, moment=st.integers(0, 12))
    def killed_creation(self, name, moment):
        """Either all of a container is there afterwards, or nothing that has a name."""
        if self.model.owner("containers", name):
            return
        self._killed(moment, lambda: self.store.create_container(names=[name]))
        for container in self.store.containers():
            if container.id not in self.model.containers:
                self._add_container(container.id, "", container.layer, name)
        self._adopt_unused_layers()

    @rule(number=CHOICE, moment=st.integers(0, 14))
    def killed_removal(self, number, moment):
        """A container is either still whole or gone."""
        container = pick(self.model.containers, number)
        if container is None:
            return
        layer = self.model.containers[container][1]
        self._killed(moment, lambda: self.store.delete_container(container))
        if container not in {c.id for c in self.store.containers()}:
            self.model.names["containers"].pop(container)
            self.model.containers.pop(container)
            if layer not in {i.id for i in self.store.layers()}:
                self.model.drop_layer(layer)

    @rule(number=CHOICE, moment=st.integers(0, 10))
    def killed_layer_removal(self, number, moment):
        """A layer is either whole or gone, also when its removal had begun."""
        layer = pick([i for i in self.model.layers if not self.model.in_use(i)], number)
        if layer is None:
            return
        self._killed(moment, lambda: self.store.delete_layer(layer))
        if layer not in {i.id for i in self.store.layers()}:
            self.model.drop_layer(layer)

    def _killed(self, moment: int, call: Callable[[], object]) -> None:
        with killed(self.store, moment):
            call()
        self.store = Store(self.options)

    def _adopt_unused_layers(self) -> None:
        """A kill between the two saves of a creation leaves a layer nobody uses; it may stay."""
        for layer in self.store.layers():
            if layer.id not in self.model.layers:
                assert layer.names == ()
                self.model.layers[layer.id] = layer.parent
                self.model.names["layers"][layer.id] = []

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def store_equals_model(self):
        type(self).steps += 1
        layers, images, containers = self.store.multi_list()
        assert {i.id: i.parent for i in layers} == self.model.layers
        assert {i.id: i.layer for i in images} == self.model.images
        assert {c.id: (c.image, c.layer) for c in containers} == self.model.containers
        for kind, records in (("layers", layers), ("images", images), ("containers", containers)):
            assert {r.id: list(r.names) for r in records} == self.model.names[kind]

    @invariant()
    def every_record_has_content(self):
        there = set(self.store.driver.layer_ids())
        assert {layer.id for layer in self.store.layers()} <= there

    @invariant()
    def a_fresh_reader_sees_the_same(self):
        fresh = Store(self.options)
        assert self._lists(fresh) == self._lists(self.store)
        for ours, theirs in (
            (self.store.catalog(), fresh.catalog()),
            (fresh.catalog(), self.store.catalog()),
        ):
            for layer in ours.layers:
                assert self._listed(ours.children(layer.id)) == self._listed(theirs.children(layer.id))
                assert ours.images_on(layer.id) == theirs.images_on(layer.id)
                assert ours.containers_on(layer.id) == theirs.containers_on(layer.id)
            for image in ours.images:
                assert ours.containers_of(image.id) == theirs.containers_of(image.id)

    def _lists(self, store):
        return [self._listed(records) for records in store.multi_list()]

    def _listed(self, records):
        """Records in an order that is the same for all: a reader has those of the image store first."""
        return sorted(records, key=lambda record: record.id) if self.split else list(records)


@contextlib.contextmanager
def killed(store: Store, moment: int):
    """End the block at its ``moment``-th step to disk, leaving everything as that step found it.

    Steps are tree operations of the driver, saves and removals of directories. What an exception would
    undo is not undone: the steps after the end do nothing.
    """
    left = moment
    dead = False

    def step(real):
        def wrapped(*args, **kwargs):
            nonlocal left, dead
            if not dead and left == 0:
                dead = True
            left -= 1
            if dead:
                raise Killed
            return real(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "create_read_write", "remove"):
            patch.setattr(store.driver, name, step(getattr(store.driver, name)))
        patch.setattr("store.segment.prepare", step(replacing.prepare))
        patch.setattr("store.replacing.put_in_place", step(replacing.put_in_place))
        for module in ("core", "deletion"):
            patch.setattr(f"store.{module}.remove_tree", step(durable.remove_tree))
        with contextlib.suppress(Killed):
            yield


def run(
    root: Path, driver: str, *, split: bool = False, examples: int = EXAMPLES, length: int = STEPS
) -> int:
    """Run the machine on a driver; gives how many rules were run."""
    machine = type("Machine", (StoreMachine,), {"root": root, "driver": driver, "split": split})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return machine.steps


@pytest.mark.parametrize("driver", ["btrfs", "vfs", "overlay"])
def test_store_behaves_as_the_model_through_crashes(btrfs_dir, driver):
    assert run(btrfs_dir, driver) > 0


@pytest.mark.parametrize("driver", ["btrfs", "vfs", "overlay"])
def test_split_store_behaves_as_the_model_through_crashes(btrfs_dir, driver):
    assert run(btrfs_dir, driver, split=True) > 0
