"""Writers that wait for a snapshot: they alone wait, however many they are and whatever becomes of them.

Only the directory in which a name is being made or removed waits with the writer: the kernel holds its lock.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support import features
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run
from tests.support.rootfs_served import errno_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITERS = 64
PATIENCE = 60
"""Seconds."""


@pytest.fixture
def held(btrfs_dir: Path, tmp_path: Path) -> Iterator[RootfsMount]:
    """Two containers, ``slow`` and ``other``; nobody may write to the first as long as it is held."""
    features.require("fuse")
    for name in ("slow", "other"):
        run("btrfs", "subvolume", "create", btrfs_dir / name)
        (btrfs_dir / name / "f").write_text("before")
        (btrfs_dir / name / "d").mkdir()
    views = {name: (btrfs_dir / name, False) for name in ("slow", "other")}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s") as mount:
        hold(mount).touch()
        try:
            yield mount
        finally:
            hold(mount).unlink(missing_ok=True)


def hold(mount: RootfsMount) -> Path:
    """While it exists, no writer of ``slow`` goes on."""
    return mount.path.parent / "s/hold-slow"


def wait_for_writers(mount: RootfsMount, count: int) -> None:
    """Until so many have reached the gate."""
    end = time.monotonic() + PATIENCE
    while len([view for view, _ in mount.gates() if view == "slow"]) < count:
        assert time.monotonic() < end, mount.gates()
        time.sleep(0.005)


def begin(pool: ThreadPoolExecutor, mount: RootfsMount) -> list[Future[int]]:
    """Writers of ``slow``, all of which wait."""
    waiting = [
        pool.submit((mount.path / f"slow/d/{number}").write_text, str(number)) for number in range(WRITERS)
    ]
    wait_for_writers(mount, 1)
    return waiting


def test_a_slow_snapshot_holds_up_neither_readers_nor_other_containers(held: RootfsMount) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting = begin(pool, held)
        for number in range(50):
            assert (held.path / "slow/f").read_text() == "before"
            assert os.listdir(held.path / "slow") == ["f", "d"]
            (held.path / f"other/{number}").write_text("written")
            os.unlink(held.path / f"other/{number}")
        assert not any(writer.done() for writer in waiting)
        hold(held).unlink()
        assert [writer.result(PATIENCE) for writer in waiting] == [len(str(n)) for n in range(WRITERS)]
    assert all((held.path / f"slow/d/{n}").read_text() == str(n) for n in range(WRITERS))


def test_a_refused_snapshot_fails_every_writer_that_waited(held: RootfsMount) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting = begin(pool, held)
        (held.path.parent / "s/refuse").touch()
        hold(held).unlink()
        found = {getattr(writer.exception(PATIENCE), "errno", None) for writer in waiting}
    assert found == {errno.EDQUOT}
    assert os.listdir(held.path / "slow/d") == []


SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
signal.siginterrupt(signal.SIGUSR1, True)
os.mkdir(sys.argv[1])
print("made")
"""


def test_a_signal_does_not_interrupt_a_writer_that_waits(held: RootfsMount) -> None:
    argv = [sys.executable, "-c", SIGNALLED, held.path / "slow/d/new"]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_writers(held, 1)
        for _ in range(3):
            writer.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        assert writer.poll() is None
        hold(held).unlink()
        assert writer.communicate(timeout=PATIENCE) == ("signal\nmade\n", "")
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("signals", [["TERM"], ["KILL"], ["USR1", "KILL"]], ids=" ".join)
def test_a_writer_that_is_killed_while_it_waits_is_let_go_and_writes_nothing(
    held: RootfsMount, signals: list[str]
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", SIGNALLED, held.path / "slow/d/new"])
    try:
        wait_for_writers(held, 1)
        for name in signals:
            writer.send_signal(signal.Signals[f"SIG{name}"])
            time.sleep(0.05)
        assert writer.wait(PATIENCE) == -signal.Signals[f"SIG{signals[-1]}"]
    finally:
        writer.kill()
        writer.wait()
    hold(held).unlink()
    assert errno_of(os.stat, held.path / "slow/d/new") == errno.ENOENT
    (held.path / "slow/d/after").write_text("x")
    assert os.listdir(held.path / "slow/d") == ["after"]
