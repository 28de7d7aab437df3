"""A lock that another process keeps: every wait ends, the holder is named, and nothing is half done."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.idmap import IDMap
from store.errors import Busy, LockTimeout
from store.options import ContainerOptions
from store.store import Store

BASE_TAR = (Path(__file__).parent / "data" / "tables" / "base.tar").read_bytes()
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""
MAPPED = ContainerOptions(uidmap=(IDMap(0, 1000, 10),), gidmap=(IDMap(0, 1000, 10),))


@contextlib.contextmanager
def held(path: Path):
    """The lock in the hands of a process that does not let go, as a hung podman."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(store):
    """The store with an image and a container; it waits a moment only."""
    layer, _ = store.put_layer(io.BytesIO(BASE_TAR), names=["base"])
    store.create_image(names=["img"], layer=layer.id)
    store.create_container(names=["web"], image="img")
    store.options = replace(store.options, lock_timeout=0.05)
    return store


CALLS = [
    ("layers", lambda s: s.create_layer()),
    ("layers", lambda s: s.put_layer(io.BytesIO(BASE_TAR))),
    ("layers", lambda s: s.set_names("base", ["other"])),
    ("layers", lambda s: s.create_container(image="img")),
    ("layers", lambda s: s.delete_container("web")),
    ("layers", lambda s: s.mount("web")),
    ("mountpoints", lambda s: s.mount("web")),
    ("images", lambda s: s.create_image()),
    ("images", lambda s: s.create_container(image="img")),
    ("images", lambda s: s.set_image_big_data("img", "key", b"")),
    ("images", lambda s: s.delete_image("img")),
    ("images", lambda s: s.wipe()),
    ("containers", lambda s: s.create_container(image="img")),
    ("containers", lambda s: s.create_layer(parent="base")),
    ("containers", lambda s: s.set_metadata("web", "text")),
    ("containers", lambda s: s.delete_layer("base")),
    ("containers", lambda s: s.delete_container("web")),
    ("userns", lambda s: s.create_container(image="img", options=MAPPED)),
    ("storage", lambda s: s.mount("web")),
    ("storage", lambda s: s.shutdown()),
    ("storage", lambda s: Store(s.options)),
]


def lock_of(store: Store, name: str) -> Path:
    if name in ("storage", "userns"):
        return store.graphroot / f"{name}.lock"
    if name == "mountpoints":
        return store.run_directory("layers") / "mountpoints.lock"
    return store.table_directory(name) / f"{name}.lock"


def trees(store: Store) -> set[str]:
    return {path.name for path in (store.graphroot / "btrfs/subvolumes").iterdir()}


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_lock_that_is_never_released_ends_the_call_and_names_who_has_it(impatient, name, call):
    before, content = impatient.catalog().stamp, trees(impatient)
    path = lock_of(impatient, name)
    with held(path) as holder:
        with pytest.raises(LockTimeout) as caught:
            call(impatient)
        assert f"{path} has been locked by process {holder.pid} (python" in str(caught.value)
        assert (caught.value.path, caught.value.holders) == (str(path), (holder.pid,))
        assert impatient.container("web").names == ("web",), "looking needs no lock"
        assert impatient.catalog().stamp == before
    assert trees(impatient) == content
    impatient.options = replace(impatient.options, lock_timeout=30)
    with contextlib.suppress(Busy):  # the rules are asked under the lock
        call(impatient)


def test_lock_of_a_killed_process_is_free_at_once(impatient):
    impatient.options = replace(impatient.options, lock_timeout=60)
    with held(lock_of(impatient, "layers")) as holder:
        waiting = threading.Thread(target=impatient.create_layer)
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()
        holder.kill()
        waiting.join(20)
        assert not waiting.is_alive()
    assert len(impatient.layers()) == 3
