"""Layers unpacked outside the locks."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from drivers.errors import DriverError
from store.config import StoreOptions
from store.errors import DuplicateID, DuplicateName, ParentUnknown
from store.store import Store

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
ROOT = Path(__file__).parent.parent
FIXED = "ab" * 32


@pytest.fixture
def store(store_dirs):
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=10
    )
    with Store(options) as store:
        yield store


def archive() -> io.BytesIO:
    return io.BytesIO(BASE_TAR.read_bytes())


def trees(store: Store) -> set[str]:
    return set(store.driver.layer_ids())


def test_staged_layer_is_nowhere_until_applied(store):
    staged = store.prepare_staged_layer(archive())
    assert store.layers() == []
    assert store.staged_ids() == trees(store) == {staged.layer.id}
    layer = store.apply_staged_layer(staged, id=FIXED, names=["base"])
    assert store.layer("base") == layer
    assert trees(store) == {FIXED}
    assert store.staged_ids() == set()
    with store.diff(FIXED) as stream:
        assert stream.read() == BASE_TAR.read_bytes()


def test_collectors_leave_staged_layers_alone(store):
    with store.prepare_staged_layer(archive()) as staged:
        assert store.check() == []
        assert store.garbage_collect() == []
        assert store.clean_staging() == []
        assert trees(store) == {staged.layer.id}
        store.cleanup_staged_layer(staged)
        assert trees(store) == set()
    assert [p.name for p in store.table_directory("layers").iterdir()] == ["layers.lock"]


def test_staged_layer_that_cannot_be_applied_is_removed(store):
    base = store.create_layer(id=FIXED, names=["taken"])
    for wrong, error in (({"id": FIXED}, DuplicateID), ({"names": ["taken"]}, DuplicateName)):
        staged = store.prepare_staged_layer(archive())
        with pytest.raises(error):
            store.apply_staged_layer(staged, **wrong)
    staged = store.prepare_staged_layer(archive(), parent=base.id)
    store.delete_layer(base.id)
    with pytest.raises(ParentUnknown):
        store.apply_staged_layer(staged)
    with pytest.raises(DriverError):
        store.prepare_staged_layer(io.BytesIO(b"no archive" * 1000))
    assert (store.layers(), trees(store), store.staged_ids()) == ([], set(), set())


def test_slow_archive_keeps_nobody_waiting(store):
    read_end, write_end = os.pipe()
    made: list[object] = []

    def put() -> None:
        with open(read_end, "rb") as slow:
            made.append(store.put_layer(slow, names=["slow"])[0])

    thread = threading.Thread(target=put)
    thread.start()
    data = BASE_TAR.read_bytes()
    try:
        with open(write_end, "wb") as pipe:
            pipe.write(data[:1000])
            pipe.flush()
            container = store.create_container(names=["quick"])
            store.delete_container(container.id)
            assert made == []
            pipe.write(data[1000:])
    finally:
        thread.join(20)
    assert store.layer("slow") == made[0]


def test_what_a_killed_process_left_staged_goes_at_the_next_open(store):
    program = """
        import os, signal, sys
        from store.config import StoreOptions
        from store.store import Store
        store = Store(StoreOptions(graphroot=sys.argv[1], runroot=sys.argv[2], driver="btrfs"))
        store.prepare_staged_layer(open(sys.argv[3], "rb"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), store.graphroot, store.runroot, BASE_TAR]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(trees(store)) == 1
    assert store.staged_ids() == set()
    Store(store.options)
    assert trees(store) == set()
    assert store.check() == []
