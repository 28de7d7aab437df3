"""The command line: exit codes, JSON, every command with and without a mount, starts that fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsd import mounts, runfile
from fsd.pool import Pool
from tests.support import loops
from tests.support.daemon import fsd, fsd_argv, fsd_env, rows, running, with_small_image
from tests.support.features import require
from tests.support.filled import CONTAINER, eventually
from tests.support.tools import StoreDirs


@pytest.fixture
def point(btrfs_dir):
    """A mountpoint; whatever is mounted there is gone afterwards."""
    require("fuse")
    return btrfs_dir / "mnt"


@pytest.fixture
def small(store_dirs, rootfs_tar):
    """A store with one image, ``localhost/small:1``, for this test alone."""
    return with_small_image(store_dirs, rootfs_tar)


@pytest.fixture
def plain_dirs(run_dir):
    """A store that is not on btrfs, so that fsd makes a pool."""
    require("btrfs")
    home = run_dir / f"cli-{time.monotonic_ns()}"
    home.mkdir()
    dirs = StoreDirs(home / "storage", home / "run")
    try:
        yield dirs
    finally:
        running_daemon = runfile.read(dirs.runroot)
        if running_daemon:
            os.kill(running_daemon.pid, signal.SIGKILL)
        loops.unmount_below(home)


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [[], ["nosuch"], ["create"], ["images", "--nosuch"], ["snapshot", "a", "--list=x"]]
)
def test_usage_error_is_one_line_and_code_2(argv, tmp_path):
    done = fsd(StoreDirs(tmp_path / "g", tmp_path / "r"), *argv, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--help" in done.stderr


def test_help_and_version_work(tmp_path):
    dirs = StoreDirs(tmp_path / "g", tmp_path / "r")
    assert "rollback" in fsd(dirs, "--help").stdout
    assert fsd(dirs, "--version").stdout.startswith("fsd ")


def test_questions_about_no_store_make_none(tmp_path):
    dirs = StoreDirs(tmp_path / "g", tmp_path / "r")
    assert rows(dirs, "images") == []
    assert fsd(dirs, "status", check=False).returncode == 1
    assert fsd(dirs, "health", check=False).returncode == 1
    assert fsd(dirs, "images", "x", check=False).returncode == 1
    assert not dirs.graphroot.exists()


# -- without a mount -------------------------------------------------------------------------------


def test_import_lists_and_podman_runs_it(small, podman):
    fsd(small, "tag", "small:1", "again:2")
    listed = fsd(small, "images").stdout.splitlines()[1:]
    assert [line.split()[0] for line in listed] == ["localhost/small:1", "localhost/again:2"]
    assert len({line.split()[1] for line in listed}) == 1
    fsd(small, "untag", "again:2")
    (image,) = rows(small, "images")
    assert image["names"] == ["localhost/small:1"]
    assert len(image["layers"]) == 1
    assert podman("run", "--rm", "localhost/small:1", "cat", "/srv/owned").stdout == "by web\n"


def test_import_from_a_pipe_with_config_sets_it(store_dirs, rootfs_tar, podman):
    flags = ["--cmd", "echo 'two words'", "--env", "A=b c", "--label", "k=v=w", "--workdir", "/srv"]
    fsd(store_dirs, "import", "-", "small", *flags, input=rootfs_tar.read_bytes())
    config = json.loads(podman("image", "inspect", "small").stdout)[0]["Config"]
    assert config["Cmd"] == ["echo", "two words"]
    assert "A=b c" in config["Env"]
    assert config["Labels"] == {"k": "v=w"}
    assert config["WorkingDir"] == "/srv"


def test_import_of_garbage_fails_and_leaves_nothing(store_dirs):
    done = fsd(store_dirs, "import", "-", "bad", input=b"not a tar" * 1000, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("fsd: ")
    assert "Traceback" not in done.stderr
    assert rows(store_dirs, "images") == rows(store_dirs, "layers") == []


def test_create_snapshot_rollback_without_a_mount(small):
    container = fsd(small, "create", "web", "small:1").stdout.strip()
    layer = rows(small, "containers", "web")[0]["layer"]
    hostname = small.graphroot / "btrfs/subvolumes" / layer / "etc/hostname"
    assert fsd(small, "snapshot", "web", "before").stdout == "before\n"
    hostname.write_text("changed\n")
    kept = fsd(small, "rollback", "web", "before").stdout.strip()
    assert hostname.read_text() == "fsd-test\n"
    assert {row["name"] for row in rows(small, "snapshot", "web", "--list")} == {"before", kept}
    fsd(small, "snapshot", "web", "before", "--delete")
    assert [row["name"] for row in rows(small, "snapshot", "web", "--list")] == [kept]
    assert rows(small, "containers", container[:12])[0]["image-name"] == "localhost/small:1"


def test_create_with_an_unknown_source_leaves_no_container(small):
    done = fsd(small, "create", "web", "nosuch", check=False)
    assert done.returncode == 125
    assert "nosuch" in done.stderr
    assert rows(small, "containers") == []


def test_create_with_a_taken_name_says_who_has_it(small):
    first = fsd(small, "create", "web").stdout.strip()
    done = fsd(small, "create", "web", check=False)
    assert done.returncode == 125
    assert first[:12] in done.stderr
    assert len(rows(small, "containers")) == 1


def test_listing_of_a_missing_name_is_a_negative_answer(small):
    done = fsd(small, "images", "nosuch", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nosuch" in done.stderr


def test_quiet_listing_prints_full_ids(small):
    (image,) = rows(small, "images")
    assert fsd(small, "images", "-q").stdout == f"{image['id']}\n"


def test_a_listing_says_what_the_whole_library_says_of_each_object(filled, podman):
    """A listing reads the tables alone; whoever is asked for by name is looked up by the library."""
    with mounted_by(podman):
        for table in ("images", "containers", "layers"):
            listed = rows(filled, table)
            assert len(listed) > 1 or table == "containers"
            assert listed == rows(filled, table, *(row["id"] for row in listed))
            text = fsd(filled, table).stdout
            assert text == fsd(filled, table, *(row["id"] for row in listed)).stdout
        assert [row["mount-count"] for row in rows(filled, "containers")] == [1]


@contextlib.contextmanager
def mounted_by(podman):
    podman("mount", CONTAINER)
    try:
        yield
    finally:
        podman("umount", CONTAINER)


def test_output_to_a_closed_pipe_is_no_error(small):
    command = " ".join(fsd_argv(small, "--help"))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | true"], env=fsd_env(), capture_output=True, check=False
    )
    assert done.stderr == b""


def test_two_prior_drivers_are_listed(store_dirs):
    for name in ("overlay", "btrfs"):
        (store_dirs.graphroot / name / "x").mkdir(parents=True)
    done = fsd(store_dirs, "layers", check=False)
    assert done.returncode == 125
    assert "overlay" in done.stderr
    assert "btrfs" in done.stderr


def test_malformed_table_is_reported_and_the_rest_is_listed(small):
    table = small.graphroot / "btrfs-containers/containers.json"
    table.write_text("{ this is no list")
    assert len(rows(small, "images")) == 1
    done = fsd(small, "containers", check=False)
    assert "containers" in done.stderr
    assert "Traceback" not in done.stderr
    assert table.read_text() == "{ this is no list"


# -- up and down -----------------------------------------------------------------------------------


def test_up_status_health_down(small, point):
    assert str(point) in fsd(small, "up", point).stdout
    status = rows(small, "status")
    assert (status["state"], status["mountpoint"], status["images"]) == ("up", str(point), 1)
    assert fsd(small, "up", point).returncode == 0
    assert fsd(small, "health").returncode == 0
    assert (point / "images/localhost/small:1/rootfs/etc/hostname").read_text() == "fsd-test\n"
    fsd(small, "down")
    assert mounts.mount_at(point) is None
    assert fsd(small, "status", check=False).returncode == 1
    assert "not up" in fsd(small, "down").stdout


def test_up_twice_at_once_starts_one_daemon(small, point):
    both = [subprocess.Popen(fsd_argv(small, "up", point), env=fsd_env()) for _ in range(2)]
    assert [process.wait(90) for process in both] == [0, 0]
    assert len([mount for mount in mounts.mounts() if mount.point == point]) == 1
    fsd(small, "down")


def test_up_on_two_prior_drivers_lists_them_and_mounts_nothing(store_dirs, point):
    for name in ("overlay", "btrfs"):
        (store_dirs.graphroot / name / "x").mkdir(parents=True)
    done = fsd(store_dirs, "up", point, check=False)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert "overlay, btrfs" in done.stderr
    assert mounts.mount_at(point) is None


def test_up_with_a_malformed_table_serves_the_rest(small, point):
    (small.graphroot / "btrfs-containers/containers.json").write_text("[{]")
    with running(small, point, quiet=False):
        assert os.listdir(point / "images/localhost") == ["small:1"]
    assert (small.graphroot / "btrfs-containers/containers.json").read_text() == "[{]"


def test_down_while_a_shell_stands_in_the_tree_succeeds(small, point):
    fsd(small, "up", point)
    shell = subprocess.Popen(["sleep", "60"], cwd=point / "containers")
    try:
        fsd(small, "down")
        assert mounts.mount_at(point) is None
    finally:
        shell.kill()
        shell.wait()


def test_up_elsewhere_while_up_is_refused(small, point):
    fsd(small, "up", point)
    done = fsd(small, "up", point.with_name("other"), check=False)
    assert done.returncode == 125
    assert str(point) in done.stderr
    fsd(small, "down")


def test_daemon_of_another_store_in_the_same_runroot_is_not_taken_for_this_ones(small, point):
    fsd(small, "up", point)
    other = StoreDirs(small.graphroot.with_name("other"), small.runroot)
    for words in ((), (point,), (point.with_name("other"),)):
        done = fsd(other, "up", *words, check=False)
        assert done.returncode == 125
        assert f"for {small.graphroot}; choose another for {other.graphroot} with --runroot" in done.stderr
    assert fsd(other, "status", check=False).returncode == 1
    assert "not up" in fsd(other, "health", check=False).stdout
    assert "not up" in fsd(other, "down").stdout
    assert rows(small, "status")["state"] == "up"
    fsd(small, "down")


def test_up_on_a_mountpoint_with_files_is_refused(small, point):
    point.mkdir()
    (point / "file").touch()
    done = fsd(small, "up", point, check=False)
    assert done.returncode == 125
    assert "not empty" in done.stderr
    assert [entry.name for entry in point.iterdir()] == ["file"]
    done = fsd(small, "up", point / "file", check=False)
    assert done.returncode == 125
    assert "is no directory" in done.stderr


def test_up_after_the_daemon_was_killed_detaches_the_dead_mount(small, point):
    fsd(small, "up", point)
    os.kill(runfile.read(small.runroot).pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not mounts.is_dead(point):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fsd(small, "up", point)
    assert len([mount for mount in mounts.mounts() if mount.point == point]) == 1
    assert (point / "README").read_text()
    fsd(small, "down")
    assert mounts.mount_at(point) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_on_a_signal_unmounts_and_exits_0(small, point, number):
    with running(small, point) as daemon:
        daemon.process.send_signal(number)
        assert daemon.process.wait(20) == 0
    assert mounts.mount_at(point) is None
    assert runfile.read(small.runroot) is None


def test_umount_from_outside_ends_the_daemon(small, point):
    with running(small, point) as daemon:
        mounts.unmount(point)
        assert daemon.process.wait(20) == 0


def test_ready_means_the_tree_answers(small, point):
    with running(small, point):
        assert sorted(os.listdir(point / "images/localhost")) == ["small:1"]


def test_down_with_a_user_in_the_tree_leaves_no_mount(small, point):
    fsd(small, "up", point)
    held = os.open(point / "images/localhost/small:1/rootfs/etc/hostname", os.O_RDONLY)
    try:
        fsd(small, "down", "--force")
    finally:
        with contextlib.suppress(OSError):  # close asks a server that is gone
            os.close(held)
    assert mounts.mount_at(point) is None
    assert runfile.read(small.runroot) is None


# -- the pool --------------------------------------------------------------------------------------


def test_up_without_btrfs_makes_a_pool_that_survives_down(plain_dirs, rootfs_tar, run_dir):
    point = plain_dirs.graphroot.with_name("mnt")
    fsd(plain_dirs, "up", point)
    fsd(plain_dirs, "import", rootfs_tar, "localhost/small:1")
    assert (point / "images/localhost/small:1/rootfs/etc/hostname").read_text() == "fsd-test\n"
    assert rows(plain_dirs, "status")["pool"]["state"] == "attached"
    fsd(plain_dirs, "down")
    assert not loops.mounts_below(plain_dirs.graphroot)
    assert not loops.loop_devices(plain_dirs.graphroot.parent)
    assert len(rows(plain_dirs, "images")) == 1  # works without a mount; attaches the pool meanwhile
    assert Pool(plain_dirs.graphroot).device is None
    fsd(plain_dirs, "up", point)
    assert (point / "images/localhost/small:1").is_dir()
    fsd(plain_dirs, "down")


def test_down_does_not_say_that_a_pool_is_detached_to_which_a_program_still_writes(plain_dirs):
    """The kernel passes its writes through, past the mount that is gone."""
    point, pool = plain_dirs.graphroot.with_name("mnt"), Pool(plain_dirs.graphroot)
    fsd(plain_dirs, "up", point)
    fsd(plain_dirs, "create", "web")
    passes = "passthrough: on" in (point / "control/health").read_text()
    held = os.open(point / "containers/web/rootfs/file", os.O_WRONLY | os.O_CREAT)
    try:
        done = fsd(plain_dirs, "down", check=False)
    finally:
        with contextlib.suppress(OSError):  # close asks a server that is gone
            os.close(held)
    assert (done.returncode, mounts.mount_at(point)) == (125 if passes else 0, None)
    who = rf"the pool stays attached: .*\(pid {os.getpid()}, fd {held}\)"
    assert re.search(who, done.stderr) or not passes
    fsd(plain_dirs, "down")
    assert not pool.devices()


def test_up_without_btrfs_and_without_pool_says_why(plain_dirs):
    done = fsd(plain_dirs, "up", "--no-pool", plain_dirs.graphroot.with_name("mnt"), check=False)
    assert done.returncode == 125
    assert "not on btrfs" in done.stderr
    assert not plain_dirs.graphroot.exists()
    assert not Pool(plain_dirs.graphroot).exists


def test_up_over_foreign_files_says_which(plain_dirs):
    plain_dirs.graphroot.mkdir()
    (plain_dirs.graphroot / "mine").write_text("precious")
    done = fsd(plain_dirs, "up", plain_dirs.graphroot.with_name("mnt"), check=False)
    assert done.returncode == 125
    assert "would hide it" in done.stderr
    assert (plain_dirs.graphroot / "mine").read_text() == "precious"


def test_create_without_a_pool_says_how_to_get_one(plain_dirs):
    done = fsd(plain_dirs, "create", "web", check=False)
    assert done.returncode == 125
    assert "fsd up" in done.stderr
    assert not plain_dirs.graphroot.exists()


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_on_a_complete_machine_finds_nothing_bad(small):
    require("fuse")
    findings = rows(small, "doctor")
    assert {finding["level"] for finding in findings} <= {"ok", "note"}


def test_doctor_without_a_program_names_its_package(small, tmp_path):
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        fsd_argv(small, "doctor", "--json"),
        env=fsd_env() | {"PATH": str(tmp_path / "bin")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert findings["mkfs.btrfs"]["remedy"] == "apt install btrfs-progs"


def test_busybox_example_makes_an_image_podman_runs(store_dirs, podman):
    root = Path(__file__).parents[1]
    archive = subprocess.run(
        [sys.executable, root / "examples/busybox_rootfs.py"], capture_output=True, check=True
    ).stdout
    fsd(store_dirs, "import", "-", "localhost/busybox:latest", input=archive)
    assert "BusyBox" in podman("run", "--rm", "busybox", "busybox").stdout


def test_up_waits_for_a_daemon_that_somebody_else_is_starting(small, point):
    """On a busy machine the second of two found the first one's mount before it answered, and gave up."""
    starting = subprocess.Popen(fsd_argv(small, "up", "--foreground", point), env=fsd_env())
    try:
        assert eventually(lambda: runfile.read(small.runroot) is not None, 60)
        starting.send_signal(signal.SIGSTOP)
        second = subprocess.Popen(fsd_argv(small, "up", point), env=fsd_env())
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        starting.send_signal(signal.SIGCONT)
        assert second.wait(90) == 0
    finally:
        starting.send_signal(signal.SIGCONT)
        fsd(small, "down")
        starting.wait(60)
