"""The daemon's record, service notifications, and dead mounts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from fsd import mounts, runfile, sdnotify
from fsd.cli_start import Keeper


def test_registered_record_lives_as_long_as_the_block(tmp_path):
    with runfile.registered(tmp_path, graphroot=tmp_path / "g", mountpoint=tmp_path / "m"):
        running = runfile.read(tmp_path)
        assert (running.pid, running.mountpoint) == (os.getpid(), tmp_path / "m")
        assert running.alive
        with (
            pytest.raises(runfile.AlreadyUp, match=rf"already up at .*/m \(pid {os.getpid()}\)"),
            runfile.registered(tmp_path, graphroot=tmp_path, mountpoint=tmp_path),
        ):
            pass
        assert runfile.read(tmp_path) == running
    assert runfile.read(tmp_path) is None


def test_record_of_a_reused_pid_does_not_count(tmp_path):
    with runfile.registered(tmp_path, graphroot=tmp_path, mountpoint=tmp_path):
        path = tmp_path / "fsd/daemon.json"
        data = json.loads(path.read_text())
        data["ticks"] += 1
        path.write_text(json.dumps(data))
        assert runfile.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x"}'])
def test_malformed_record_does_not_count(tmp_path, text):
    (tmp_path / "fsd").mkdir()
    (tmp_path / "fsd/daemon.json").write_text(text)
    assert runfile.read(tmp_path) is None


def test_record_of_a_killed_process_does_not_block_the_next(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom fsd import runfile\np = pathlib.Path(sys.argv[1])\n"
        "with runfile.registered(p, graphroot=p, mountpoint=p):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert (tmp_path / "fsd/daemon.json").exists()
    assert runfile.read(tmp_path) is None
    with runfile.registered(tmp_path, graphroot=tmp_path, mountpoint=tmp_path):
        assert runfile.read(tmp_path).pid == os.getpid()


@pytest.mark.parametrize("abstract", [True, False])
def test_notify_reaches_the_supervisor(tmp_path, monkeypatch, abstract):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"fsd-test-{os.getpid()}" if abstract else str(tmp_path / "s")
        receiver.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        assert sdnotify.notify("READY=1", "STATUS=x")
        assert receiver.recv(100) == b"READY=1\nSTATUS=x"


def test_notify_without_a_supervisor_is_quiet(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sdnotify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not sdnotify.notify("READY=1")


def test_watchdog_is_ours_only_with_our_pid(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert sdnotify.watchdog_seconds() == 2.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_seconds() is None


def test_keeper_feeds_the_watchdog_only_while_the_tree_answers(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0fsd-watchdog-{os.getpid()}")
        receiver.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@fsd-watchdog-{os.getpid()}")
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        with Keeper(tmp_path, None).running(), pytest.raises(TimeoutError):
            receiver.recv(100)
        (tmp_path / "control").mkdir()
        with Keeper(tmp_path, None).running():
            assert receiver.recv(100) == b"WATCHDOG=1"


def test_mounts_name_the_file_system_of_what_does_not_exist_yet(btrfs_dir):
    assert mounts.filesystem_of(btrfs_dir / "not/yet").fstype == "btrfs"
    assert mounts.filesystem_of(btrfs_dir / "not/yet").point == btrfs_dir.parent


def test_mount_with_a_space_in_its_name_is_found(btrfs_dir):
    point = btrfs_dir / "a b\tc"
    point.mkdir()
    mounts.run("mount", "--bind", point, point)
    assert mounts.mount_at(point).fstype == "btrfs"
    assert [mount.point for mount in mounts.below(btrfs_dir)] == [point]
    mounts.unmount(point)
    assert mounts.mount_at(point) is None


def test_plain_directory_is_not_dead(tmp_path):
    assert not mounts.is_dead(tmp_path)
    assert not mounts.detach_dead(tmp_path)


def test_answers_says_no_for_what_is_not_there(tmp_path):
    assert mounts.answers(tmp_path)
    assert not mounts.answers(tmp_path / "nosuch")


def test_run_of_a_failing_tool_carries_its_words(tmp_path):
    with pytest.raises(mounts.MountError, match=r"umount: .*not mounted"):
        mounts.unmount(tmp_path)
    with pytest.raises(mounts.MountError, match="no-such-tool is not installed"):
        mounts.run("no-such-tool")
