"""Lock files against POSIX locks of other processes, threads of this one, and stuck holders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from store.errors import LockTimeout, StoreReadOnly
from store.lockfile import STAMP_SIZE, LockFile

SAMPLE = Path(__file__).parent / "data" / "tables" / "layers.lock"
POSIX_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX if sys.argv[2] == "w" else fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path) -> LockFile:
    lock = LockFile.get(tmp_path / "layers.lock")
    lock.touch()
    return lock


class Holder:
    """Another process that holds a POSIX lock, as podman does."""

    def __init__(self, path: Path, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", POSIX_HOLDER, str(path), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"

    def release(self) -> None:
        self.process.communicate()


@pytest.fixture
def hold(lock):
    holders: list[Holder] = []

    def start(kind: str) -> Holder:
        holders.append(Holder(lock.path, kind))
        return holders[-1]

    yield start
    for holder in holders:
        if holder.process.poll() is None:
            holder.release()


def test_touch_makes_an_empty_file_and_keeps_a_full_one(lock):
    assert lock.path.read_bytes() == b""
    assert lock.path.stat().st_mode & 0o777 == 0o644
    with lock.writing():
        token = lock.stamp()
    lock.touch()
    assert lock.path.read_bytes() == token


def test_stamp_has_the_layout_of_the_sample(lock):
    before = time.time_ns()
    with lock.writing():
        token, second = lock.stamp(), lock.stamp()
    sample = SAMPLE.read_bytes()
    assert len(token) == len(sample) == STAMP_SIZE
    assert before <= int.from_bytes(token[:8], "little") <= time.time_ns()
    assert int.from_bytes(token[16:20], "little") == os.getpid()
    assert int.from_bytes(second[8:16], "little") > int.from_bytes(token[8:16], "little")
    assert lock.path.stat().st_size == STAMP_SIZE


def test_changed_tells_stamps_apart(lock):
    token = lock.token()
    assert token == b""
    assert not lock.changed(token)
    with lock.writing():
        lock.stamp()
    assert lock.changed(token)
    assert not lock.changed(lock.token())


def test_stamp_needs_the_exclusive_lock(lock):
    with pytest.raises(RuntimeError, match="not locked"):
        lock.stamp()
    with lock.reading(), pytest.raises(RuntimeError, match="not locked"):
        lock.stamp()
    assert lock.token() == b""


@pytest.mark.parametrize(("theirs", "ours"), [("w", "reading"), ("w", "writing"), ("r", "writing")])
def test_posix_lock_elsewhere_makes_us_wait_and_is_named(lock, hold, theirs, ours):
    holder = hold(theirs)
    started = time.monotonic()
    with (
        pytest.raises(LockTimeout, match=f"process {holder.process.pid} ") as caught,
        getattr(lock, ours)(0.3),
    ):
        pytest.fail("locked although another process holds it")
    assert 0.25 <= time.monotonic() - started < 5
    assert caught.value.holders == (holder.process.pid,)
    holder.release()
    with getattr(lock, ours)(1):
        pass


def test_shared_locks_go_together_with_posix_readers(lock, hold):
    hold("r")
    with lock.reading(1):
        pass


@pytest.mark.parametrize(("ours", "theirs"), [("reading", "w"), ("writing", "r")])
def test_our_lock_keeps_posix_lockers_out(lock, ours, theirs):
    code = (
        "import fcntl,sys\nf=open(sys.argv[1],'r+b')\n"
        "try: fcntl.lockf(f,(fcntl.LOCK_EX if sys.argv[2]=='w' else fcntl.LOCK_SH)|fcntl.LOCK_NB)\n"
        "except OSError: print('busy')\nelse: print('got it')\n"
    )
    argv = [sys.executable, "-c", code, str(lock.path), theirs]
    with getattr(lock, ours)():
        lock.token()  # opens and closes the file, which would drop a POSIX lock
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "busy\n"
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "got it\n"


def test_threads_exclude_each_other_and_all_get_their_turn(lock):
    inside = 0
    most = 0
    total = 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(20):
            with lock.writing(20):
                inside += 1
                most = max(most, inside)
                total += 1
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, total) == (1, 100)


def test_readers_share(lock):
    both = threading.Barrier(2, timeout=5)

    def read() -> None:
        with lock.reading(5):
            both.wait()

    other = threading.Thread(target=read)
    other.start()
    read()
    other.join(5)
    assert not both.broken


def test_waiting_longer_than_the_spin_gets_the_lock_when_released(lock, hold):
    holder = hold("w")
    started = time.monotonic()
    release = threading.Timer(0.4, holder.release)
    release.start()
    with lock.writing(10):
        assert time.monotonic() - started >= 0.4
    release.join()


def test_lock_given_up_is_released_as_soon_as_it_arrives(lock, hold):
    holder = hold("w")
    with pytest.raises(LockTimeout), lock.writing(0.2):
        pass
    holder.release()
    deadline = time.monotonic() + 5
    while any(t.name == "lock waiter" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    with lock.writing(1):
        pass


def test_locking_twice_in_one_thread_is_refused_at_once(lock):
    with lock.reading(), pytest.raises(RuntimeError, match="already locked by this thread"), lock.writing():
        pass


def test_lock_is_released_after_an_exception(lock):
    with pytest.raises(KeyError), lock.writing():
        raise KeyError("x")
    with lock.writing(0.1):
        pass


def test_same_file_by_other_path_is_the_same_lock(lock, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert LockFile.get(tmp_path / "link" / "layers.lock") is lock


def test_own_timeout_names_this_process(lock):
    caught: list[LockTimeout] = []

    def attempt() -> None:
        try:
            with lock.writing(0.1):
                pass
        except LockTimeout as error:
            caught.append(error)

    with lock.writing():
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(10)
    assert "this process" in str(caught[0])
    assert caught[0].holders == (os.getpid(),)


def test_read_only_lock_can_be_shared_but_not_written(tmp_path):
    path = tmp_path / "images.lock"
    path.touch()
    path.chmod(0o444)
    lock = LockFile.get(path, read_only=True)
    with lock.reading(1):
        pass
    with pytest.raises(StoreReadOnly), lock.writing(1):
        pass
