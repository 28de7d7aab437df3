"""The embedded pool: made once and whole, attached on demand, detached clean, never over someone's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fsd import mounts
from fsd.pool import GIB, MIB, SMALLEST, STEP, Pool, PoolError, Usage, first_size, growth
from tests.support.features import require
from tests.support.loops import loop_devices, mounts_below, unmount_below
from tests.support.tools import StoreDirs, ToolBox


@pytest.fixture
def pool(run_dir, tmp_path_factory):
    """A pool that does not exist yet, on the host's own file system."""
    require("btrfs")
    home = run_dir / f"pool-{time.monotonic_ns()}"
    home.mkdir()
    try:
        yield Pool(home / "storage")
    finally:
        unmount_below(home)


def fill(path, mib):
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def test_ensure_on_nothing_makes_a_private_btrfs(pool):
    assert pool.wanted
    assert pool.ensure()
    mount = mounts.mount_at(pool.graphroot)
    assert (mount.fstype, mount.source) == ("btrfs", pool.device)
    assert pool.graphroot.stat().st_mode & 0o777 == 0o700
    assert pool.image.stat().st_mode & 0o777 == 0o600
    assert pool.image.stat().st_blocks * 512 < 64 * MIB
    assert pool.usage().size >= SMALLEST


def test_ensure_twice_changes_nothing(pool):
    pool.ensure()
    (pool.graphroot / "kept").write_text("content")
    device = pool.device
    assert not pool.ensure()
    assert pool.device == device
    assert len(pool.devices()) == 1


def test_detach_and_attach_keeps_content(pool):
    pool.ensure()
    (pool.graphroot / "kept").write_text("content")
    assert pool.detach()
    assert not loop_devices(pool.image.parent)
    assert not any(pool.graphroot.iterdir())
    assert not pool.detach()
    assert pool.attach()
    assert (pool.graphroot / "kept").read_text() == "content"
    assert not pool.attach()


def test_detach_with_a_bind_left_by_a_peer_unmounts_it(pool):
    pool.ensure()
    home = pool.graphroot / "btrfs"
    home.mkdir()
    mounts.run("mount", "--bind", home, home)
    assert pool.detach()
    assert not mounts_below(pool.graphroot)


def test_detach_in_use_names_the_holder_and_keeps_the_pool(pool):
    pool.ensure()
    with open(pool.graphroot / "held", "w"):
        with pytest.raises(PoolError, match=rf"in use by .*\(pid {os.getpid()}, fd \d+\)"):
            pool.detach()
        assert pool.device is not None
    assert pool.detach()


def test_detach_waits_for_what_the_kernel_alone_still_uses(pool):
    pool.ensure()
    held = pool.graphroot / "held"
    with held.open("wb") as file:
        file.truncate(1 << 20)
    device = mounts.run("losetup", "--find", "--show", held).strip()
    free = threading.Timer(0.3, mounts.run, ("losetup", "--detach", device))
    free.start()
    try:
        assert pool.detach()
    finally:
        free.join()


def test_detach_names_who_uses_a_part_that_is_bound_onto_itself(pool):
    """As the graph driver's home is by every daemon and by podman."""
    pool.ensure()
    home = pool.graphroot / "btrfs"
    home.mkdir()
    mounts.run("mount", "--bind", home, home)
    user = subprocess.Popen(["sleep", "60"], cwd=home)
    try:
        with pytest.raises(PoolError, match=rf"stays attached: in use by .*\(pid {user.pid}, cwd\)"):
            pool.detach()
    finally:
        user.kill()
        user.wait()
    assert pool.detach()


def test_detach_with_a_foreign_mount_inside_names_it(pool):
    pool.ensure()
    inside = pool.graphroot / "elsewhere"
    inside.mkdir()
    mounts.run("mount", "-t", "tmpfs", "none", inside)
    with pytest.raises(PoolError, match="elsewhere is mounted"):
        pool.detach()


def test_ensure_over_files_refuses_and_changes_nothing(pool):
    (pool.graphroot / "overlay").mkdir(parents=True)
    (pool.graphroot / "overlay/file").touch()
    with pytest.raises(
        PoolError, match=r"in use, for example .*/overlay/file: a pool mounted there would hide"
    ):
        pool.ensure()
    assert [entry.name for entry in pool.image.parent.iterdir()] == ["storage"]


def test_ensure_over_what_an_opened_empty_store_leaves_works(pool):
    (pool.graphroot / "overlay-images").mkdir(parents=True)
    (pool.graphroot / "overlay-images/images.lock").write_bytes(bytes(64))
    assert pool.ensure()


def test_podman_run_while_the_pool_is_detached_does_not_keep_it_from_being_attached(pool, run_dir):
    """It makes its database before it looks for a store."""
    require("podman")
    pool.ensure()
    (pool.graphroot / "kept").touch()
    assert pool.detach()
    dirs = StoreDirs(pool.graphroot, run_dir / "r")  # podman wants less than 50 characters
    podman = ToolBox(dirs, "btrfs", pool.graphroot.parent / "conf").podman()
    assert "not on a btrfs filesystem" in podman("ps", check=False).stderr
    assert (pool.graphroot / "libpod/bolt_state.db").exists()
    assert pool.attach()
    assert (pool.graphroot / "kept").exists()


def test_ensure_with_an_image_that_is_no_btrfs_refuses_and_keeps_it(pool):
    pool.image.write_bytes(b"precious" * 65536)
    with pytest.raises(PoolError, match="is no btrfs image"):
        pool.ensure()
    assert pool.image.read_bytes() == b"precious" * 65536


def test_ensure_after_a_creation_cut_short_starts_over(pool):
    half_made = pool.image.with_name(".storage.btrfs.new")
    half_made.write_bytes(b"x" * MIB)
    assert pool.ensure()
    assert sorted(entry.name for entry in pool.image.parent.iterdir()) == ["storage", "storage.btrfs"]


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_ensure_killed_at_any_moment_can_be_repeated(pool, delay):
    code = "import sys, pathlib; from fsd.pool import Pool; Pool(pathlib.Path(sys.argv[1])).ensure()"
    process = subprocess.Popen([sys.executable, "-c", code, str(pool.graphroot)], stderr=subprocess.DEVNULL)
    time.sleep(0.1 + delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pool.ensure()
    (pool.graphroot / "usable").write_text("yes")
    assert len(pool.devices()) == 1
    assert sorted(entry.name for entry in pool.image.parent.iterdir()) == ["storage", "storage.btrfs"]


def test_ensure_by_several_processes_at_once_makes_one_pool(pool):
    code = "import sys, pathlib; from fsd.pool import Pool; print(Pool(pathlib.Path(sys.argv[1])).ensure())"
    argv = [sys.executable, "-c", code, str(pool.graphroot)]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate()[0].strip() for process in processes]
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert len(pool.devices()) == 1
    assert len([mount for mount in mounts.mounts() if mount.point == pool.graphroot]) == 1


def test_grow_when_short_doubles_the_file_system(pool, monkeypatch):
    monkeypatch.setattr("fsd.pool.FIRST", SMALLEST)
    pool.ensure()
    assert pool.grow() == 0
    fill(pool.graphroot / "big", 150)
    before = pool.usage()
    gained = pool.grow()
    after = pool.usage()
    assert gained == before.size
    assert after.size == 2 * before.size
    assert after.free >= before.free + gained // 2


def test_attach_after_a_growth_cut_short_finishes_it(pool, monkeypatch):
    monkeypatch.setattr("fsd.pool.FIRST", SMALLEST)
    pool.ensure()
    pool.detach()
    os.truncate(pool.image, 2 * SMALLEST)
    pool.attach()
    inside = os.statvfs(pool.graphroot)
    assert inside.f_blocks * inside.f_frsize == 2 * SMALLEST


def test_deleted_content_returns_to_the_host(pool):
    pool.ensure()
    fill(pool.graphroot / "big", 128)
    full = pool.usage().allocated
    (pool.graphroot / "big").unlink()
    mounts.run("btrfs", "filesystem", "sync", pool.graphroot)
    mounts.run("fstrim", pool.graphroot)
    assert full - pool.usage().allocated > 100 * MIB


def test_session_detaches_only_what_it_attached(pool):
    with pool.session():
        assert not pool.exists
    with pool.session(make=True):
        assert pool.device
        with pool.session():
            assert pool.device
        assert pool.device
    assert pool.device is None
    pool.attach()
    with pool.session():
        pass
    assert pool.device


def test_pool_on_btrfs_is_not_wanted(btrfs_dir):
    assert not Pool(btrfs_dir / "storage").wanted


@pytest.mark.parametrize(
    ("host_free", "size"),
    [(100 * GIB, 16 * GIB), (10 * GIB, 9 * GIB), (GIB, 14 * STEP), (300 * MIB, SMALLEST)],
)
def test_first_size_stays_within_the_host(host_free, size):
    assert first_size(host_free) == size


def test_first_size_on_a_full_host_is_refused():
    with pytest.raises(PoolError, match="a pool needs 256 MiB"):
        first_size(200 * MIB)


@pytest.mark.parametrize(
    ("free", "host_free", "gain"),
    [
        (5 * GIB, 100 * GIB, 0),  # room enough inside
        (GIB, 100 * GIB, 16 * GIB),  # doubles
        (GIB, 20 * GIB, 17 * GIB // STEP * STEP),  # bounded by what the host can back
        (GIB, 1 * GIB, 0),  # nothing to give: what is promised already exceeds it
    ],
)
def test_growth_never_promises_more_than_the_host_has(free, host_free, gain):
    usage = Usage(size=16 * GIB, used=15 * GIB, free=free, allocated=15 * GIB, host_free=host_free)
    result = growth(usage)
    assert result <= max(0, host_free - usage.promised)
    assert result == min(gain, 16 * GIB)
