"""History and filling against a model, with the state lost and the store opened again in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from store.config import StoreOptions
from store.errors import NotPristine, Pinned, SnapshotExists
from store.fill import fill
from store.history import History
from store.store import Store

NAMES = st.sampled_from(["a", "b", "c.1", "Z"])


class Model:
    """One container as it should be: its content (``None`` is an empty rootfs) and its snapshots'."""

    def __init__(self) -> None:
        self.content: str | None = None
        self.snapshots: dict[str, str | None] = {}
        self.pinned: set[str] = set()


class HistoryMachine(RuleBasedStateMachine):
    """Steps of people and of crashes; the invariants compare store, disk and model after each."""

    directory: Path
    runs = 0
    containers = Bundle("containers")

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        root = self.directory / str(self.runs)
        options = StoreOptions(graphroot=str(root / "g"), runroot=str(root / "r"), driver="btrfs")
        self.store = Store(options)
        self.history = History(self.store)
        self.models: dict[str, Model] = {}
        self.written = 0

    def teardown(self) -> None:
        self.history.state.close()
        self.store.driver.cleanup()

    def rootfs(self, container: str) -> Path:
        return self.store.driver.get(self.store.container(container).layer)

    @rule(target=containers)
    def create(self) -> object:
        if len(self.models) >= 3:
            return multiple()
        container = self.store.create_container().id
        self.models[container] = Model()
        return container

    def known(self, container: str) -> bool:
        return container in self.models

    @rule(container=containers)
    def write(self, container: str) -> None:
        if self.known(container):
            self.written += 1
            self.models[container].content = str(self.written)
            (self.rootfs(container) / "file").write_text(str(self.written))

    @rule(container=containers, name=st.none() | NAMES)
    def take(self, container: str, name: str | None) -> None:
        if not self.known(container):
            return
        model = self.models[container]
        if name in model.snapshots:
            with pytest.raises(SnapshotExists):
                self.history.take(container, name)
        else:
            model.snapshots[self.history.take(container, name).name] = model.content

    @rule(container=containers, data=st.data(), new=NAMES)
    def rename(self, container: str, data: st.DataObject, new: str) -> None:
        if (name := self.some(container, data)) is None:
            return
        model = self.models[container]
        if new in model.snapshots:
            with pytest.raises(SnapshotExists):
                self.history.rename(container, name, new)
        else:
            self.history.rename(container, name, new)
            model.snapshots[new] = model.snapshots.pop(name)
            if name in model.pinned:
                model.pinned = model.pinned - {name} | {new}

    @rule(container=containers, data=st.data(), pinned=st.booleans())
    def pin(self, container: str, data: st.DataObject, pinned: bool) -> None:
        if (name := self.some(container, data)) is not None:
            self.history.pin(container, name, pinned)
            model = self.models[container]
            model.pinned = model.pinned | {name} if pinned else model.pinned - {name}

    @rule(container=containers, data=st.data())
    def remove(self, container: str, data: st.DataObject) -> None:
        if (name := self.some(container, data)) is None:
            return
        model = self.models[container]
        if name in model.pinned:
            with pytest.raises(Pinned):
                self.history.remove(container, name)
        else:
            self.history.remove(container, name)
            del model.snapshots[name]

    @rule(container=containers, data=st.data())
    def roll_back(self, container: str, data: st.DataObject) -> None:
        if (name := self.some(container, data)) is None:
            return
        model = self.models[container]
        kept = self.history.rollback(container, name)
        model.snapshots[kept.name] = model.content
        model.content = model.snapshots[name]

    @rule(container=containers, other=containers, data=st.data())
    def fill_from_snapshot(self, container: str, other: str, data: st.DataObject) -> None:
        if not self.known(container) or container == other or (name := self.some(other, data)) is None:
            return
        model = self.models[container]
        if model.content is not None:
            with pytest.raises(NotPristine):
                fill(self.store, container, f"{other}/snapshots/{name}", state=self.history.state)
        else:
            fill(self.store, container, f"{other}/snapshots/{name}", state=self.history.state)
            model.content = self.models[other].snapshots[name]

    @rule(container=containers)
    def delete(self, container: str) -> None:
        if not self.known(container):
            return
        if self.models[container].pinned:
            with pytest.raises(Pinned):
                self.history.delete_container(container)
        else:
            self.history.delete_container(container)
            del self.models[container]

    @rule()
    def open_again(self) -> None:
        self.history.state.close()
        self.history = History(Store(self.store.options))

    @precondition(lambda self: self.models)
    @rule()
    def lose_the_state(self) -> None:
        self.history.state.path.unlink()
        for model in self.models.values():
            model.pinned.clear()

    def some(self, container: str, data: st.DataObject) -> str | None:
        """One of a container's snapshots."""
        names = sorted(self.models[container].snapshots) if self.known(container) else []
        return data.draw(st.sampled_from(names)) if names else None

    @invariant()
    def store_and_disk_are_as_the_model_says(self) -> None:
        assert {c.id for c in self.store.containers()} == set(self.models)
        assert self.history.list_orphans() == ()
        keys = {f"{c}/{name}" for c, model in self.models.items() for name in model.snapshots}
        assert set(self.history.table.copies.keys()) == keys
        for container, model in self.models.items():
            assert read(self.rootfs(container)) == model.content
            listed = {s.name: s.pinned for s in self.history.list(container)}
            assert listed == {name: name in model.pinned for name in model.snapshots}
            for name, content in model.snapshots.items():
                assert read(self.history.path(container, name)) == content

    @invariant()
    def every_layer_has_a_record_and_nothing_is_pending(self) -> None:
        assert {layer.id for layer in self.store.layers()} == set(self.store.driver.layer_ids())
        assert {layer.id for layer in self.store.layers()} == {c.layer for c in self.store.containers()}
        assert self.history.state.pending() == []


def read(root: Path) -> str | None:
    file = root / "file"
    return file.read_text() if file.exists() else None


def test_history_behaves_like_its_model(btrfs_dir: Path) -> None:
    HistoryMachine.directory = btrfs_dir
    run_state_machine_as_test(
        HistoryMachine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
