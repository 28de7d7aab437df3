"""What only the btrfs driver does: subvolumes, snapshots, failure half way, and life beside podman."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import btrfs_ioctl, syscalls
from drivers.base import DEFAULT_CREATION, Creation, MountOptions
from drivers.btrfs import BtrfsDriver
from drivers.errors import (
    BadOption,
    LayerMounted,
    LayerUnknown,
    PrerequisitesMissing,
)
from drivers.idmap import IDMap, IDMappings
from tests.support.features import lacking
from tests.support.loops import loop_mount, run

if TYPE_CHECKING:
    from tests.support.tools import StoreDirs, Tool

NOBODY = 65534


@pytest.fixture
def driver(btrfs_dir: Path) -> Iterator[BtrfsDriver]:
    opened = BtrfsDriver(btrfs_dir / "btrfs")
    try:
        yield opened
    finally:
        opened.cleanup()


# -- layout ------------------------------------------------------------------------------------


def test_layer_is_a_writable_subvolume_named_by_its_id(driver: BtrfsDriver) -> None:
    driver.create("a" * 64)
    path = driver.home / "subvolumes" / ("a" * 64)
    assert btrfs_ioctl.is_subvolume(path)
    assert not btrfs_ioctl.is_read_only(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    assert stat.S_IMODE(driver.home.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_child_is_a_snapshot_of_its_parent(driver: BtrfsDriver) -> None:
    driver.create("parent")
    driver.create("child", "parent")
    parent = btrfs_ioctl.subvolume_info(driver.present("parent"))
    assert btrfs_ioctl.subvolume_info(driver.present("child")).parent_uuid == parent.uuid


def test_home_is_a_private_mount_until_cleanup(btrfs_dir: Path) -> None:
    home = btrfs_dir / "btrfs"
    first, second = BtrfsDriver(home), BtrfsDriver(home)
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = [fields for fields in lines if fields[4] == str(home)]
    assert len(mounts) == 1
    assert not any(word.startswith("shared:") for word in mounts[0])
    first.cleanup()
    assert not syscalls.is_mount_root(home)
    second.create("still works")
    second.cleanup()


def test_home_elsewhere_than_on_btrfs_lacks_the_prerequisites(ext4_dir: Path) -> None:
    with pytest.raises(PrerequisitesMissing):
        BtrfsDriver(ext4_dir / "btrfs")
    assert not (ext4_dir / "btrfs").exists()


def test_status_tells_kernel_features_sectors_quota_and_generation(driver: BtrfsDriver) -> None:
    status = dict(driver.status())
    assert status["Kernel"] == os.uname().release
    assert "free_space_tree" in status["Btrfs Features"]
    assert status["Sector Size"] == str(os.sysconf("SC_PAGESIZE"))
    assert status["Quota"] in ("off", "simple quotas", "qgroups")
    assert int(status["Generation"]) > 0


# -- removal -----------------------------------------------------------------------------------


def test_remove_takes_nested_subvolumes_along(driver: BtrfsDriver) -> None:
    driver.create("layer")
    root = driver.present("layer")
    (root / "dir").mkdir()
    btrfs_ioctl.create_subvolume(root / "dir", "inner")
    btrfs_ioctl.create_subvolume(root / "dir" / "inner", "innermost")
    (root / "dir" / "inner" / "innermost" / "file").touch()
    btrfs_ioctl.snapshot(root / "dir" / "inner", root, "frozen", read_only=True)
    btrfs_ioctl.set_read_only(root / "dir" / "inner", True)
    driver.remove("layer")
    assert not root.exists()


def test_remove_of_a_read_only_layer_works(driver: BtrfsDriver) -> None:
    driver.create("layer")
    btrfs_ioctl.set_read_only(driver.present("layer"), True)
    driver.remove("layer")
    assert not driver.exists("layer")


def test_remove_of_a_layer_that_became_a_plain_directory_works(driver: BtrfsDriver) -> None:
    plain = driver.home / "subvolumes" / "plain"
    (plain / "sub").mkdir(parents=True)
    (plain / "sub" / "file").touch()
    assert driver.exists("plain")
    with pytest.raises(LayerUnknown, match="plain directory"):
        driver.create("child", "plain")
    driver.remove("plain")
    assert not plain.exists()


def test_subvolume_deleted_by_btrfs_progs_is_unknown(driver: BtrfsDriver) -> None:
    driver.create("layer")
    run("btrfs", "subvolume", "delete", driver.present("layer"))
    for call in (driver.get, driver.remove, driver.metadata, driver.read_write_disk_usage, driver.ownership):
        with pytest.raises(LayerUnknown, match="layer"):
            call("layer")


def test_removed_layer_is_gone_from_disk_when_removals_are_finished(driver: BtrfsDriver) -> None:
    driver.create("base")
    root = driver.present("base")
    for number in range(6000):
        (root / f"{number}").write_bytes(b"cached")
    driver.remove("base")
    assert not root.exists()
    driver.create("base")
    driver.finish_removals()
    assert list(driver.scratch.iterdir()) == []


def test_layer_the_kernel_will_not_destroy_stays_in_its_place(driver: BtrfsDriver) -> None:
    """The default subvolume of a filesystem cannot be destroyed."""
    driver.create("layer")
    (driver.present("layer") / "file").touch()
    identifier = btrfs_ioctl.subvolume_id(driver.present("layer"))
    run("btrfs", "subvolume", "set-default", str(identifier), driver.home)
    try:
        with pytest.raises(OSError, match="SNAP_DESTROY") as caught:
            driver.remove("layer")
        assert caught.value.errno == errno.EPERM
        assert (driver.present("layer") / "file").exists()
    finally:
        run("btrfs", "subvolume", "set-default", "5", driver.home)
    driver.remove("layer")


UNPRIVILEGED = """
    from pathlib import Path
    from drivers import btrfs_ioctl
    from drivers.btrfs import BtrfsDriver
    driver = BtrfsDriver(Path("btrfs"))
    driver.create("base")
    root = driver.present("base")
    root.chmod(0o755)
    (root / "dir").mkdir()
    (root / "dir" / "file").write_text("x")
    assert driver.read_write_disk_usage("base").inodes == 3
    (root / "dir").chmod(0o000)
    driver.create("child", "base")
    child = driver.present("child")
    btrfs_ioctl.create_subvolume(child, "inner")
    (child / "inner" / "file").touch()
    btrfs_ioctl.set_read_only(child / "inner", True)
    driver.snapshots().take("base", "c/one")
    assert driver.status()
    driver.snapshots().remove("c/one")
    driver.remove("child")
    driver.remove("base")
    assert not list(driver.layer_ids())
    print("done")
"""


def test_unprivileged_owner_makes_snapshots_and_removes_layers(btrfs_dir: Path) -> None:
    home = btrfs_dir / "mine"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    done = _as_nobody(UNPRIVILEGED, home)
    assert done.stdout == "done\n", done.stderr


def _as_nobody(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in ``directory``, which it reaches as its working directory, whoever owns the way."""
    return subprocess.run(
        [sys.executable, "-c", _BECOME_NOBODY + textwrap.dedent(program)],
        capture_output=True, text=True, check=False, cwd=directory,
        env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


_BECOME_NOBODY = f"""
import os
import drivers.btrfs
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""


# -- failures half way -------------------------------------------------------------------------


def test_failure_after_the_subvolume_is_made_leaves_nothing(driver: BtrfsDriver) -> None:
    """The limit cannot be recorded: its directory is a file."""
    (driver.home / "quotas").write_text("in the way")
    driver.quotas.enable()
    try:
        with pytest.raises(OSError, match=r"exists|directory") as caught:
            driver.create("layer", creation=Creation(storage_opts={"size": "1g"}))
        assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)
        assert not driver.exists("layer")
    finally:
        driver.quotas.disable()


def test_full_filesystem_leaves_no_half_made_layer(run_dir: Path) -> None:
    with loop_mount(run_dir, "full", mkfs=("mkfs.btrfs", "-q", "-M"), size=96 << 20) as point:
        driver = BtrfsDriver(point / "btrfs")
        driver.create("base")
        filler = driver.present("base") / "filler"
        with pytest.raises(OSError, match="No space"):
            _fill(filler)
        made = _create_until(errno.ENOSPC, driver)
        assert set(driver.layer_ids()) == {"base", *made}
        assert list(driver.scratch.iterdir()) == []
        filler.unlink()
        for layer_id in made:
            driver.remove(layer_id)
        driver.create("again", "base")
        driver.cleanup()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(1 << 20))


def _create_until(code: int, driver: BtrfsDriver, creation: Creation = DEFAULT_CREATION) -> list[str]:
    """Children of ``base`` made before the first one that fails, which must fail with ``code``."""
    made: list[str] = []
    failure = None
    while failure is None and len(made) < 20000:
        layer_id = f"{len(made):05}" + "x" * 200
        try:
            driver.create(layer_id, "base", creation)
        except OSError as error:
            failure = error.errno
        else:
            made.append(layer_id)
    assert failure == code
    return made


def test_exhausted_quota_of_the_graphroot_leaves_no_half_made_layer(run_dir: Path) -> None:
    with loop_mount(run_dir, "edquot", mkfs=("mkfs.btrfs", "-q"), size=512 << 20) as point:
        btrfs_ioctl.create_subvolume(point, "graphroot")
        driver = BtrfsDriver(point / "graphroot" / "btrfs")
        driver.create("base")
        driver.quotas.enable()
        (point / "graphroot" / "data").write_bytes(os.urandom(4 << 20))
        btrfs_ioctl.sync(point)
        qgroup = btrfs_ioctl.subvolume_id(point / "graphroot")
        btrfs_ioctl.limit_qgroup(point, qgroup, 1 << 20)
        made = _create_until(errno.EDQUOT, driver, Creation(storage_opts={"size": "10m"}))
        assert set(driver.layer_ids()) == {"base", *made}
        assert {entry.name for entry in driver.home.glob("quotas/*")} == set(made)
        btrfs_ioctl.limit_qgroup(point, qgroup, 0)
        driver.create("again", "base")
        driver.cleanup()


def test_read_only_filesystem_refuses_changes_and_serves_what_is_there(run_dir: Path) -> None:
    with loop_mount(run_dir, "readonly", mkfs=("mkfs.btrfs", "-q"), size=256 << 20) as point:
        driver = BtrfsDriver(point / "btrfs")
        driver.create("base")
        driver.cleanup()
        for name in ("tmp", "older"):
            os.rmdir(point / "btrfs" / "fsd" / name)
        os.rmdir(point / "btrfs" / "fsd")
        run("mount", "-o", "remount,ro", point)
        driver = BtrfsDriver(point / "btrfs")
        assert driver.get("base").is_dir()
        for call in (lambda: driver.create("new"), lambda: driver.remove("base")):
            with pytest.raises(OSError, match="Read-only") as caught:
                call()
            assert caught.value.errno == errno.EROFS
        assert list(driver.layer_ids()) == ["base"]
        driver.cleanup()


def test_copies_of_a_crashed_process_are_removed_at_the_next_open(
    btrfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = BtrfsDriver(btrfs_dir / "btrfs")
    driver.create("layer")
    left = [place / "999999999-1-abc" for place in (driver.scratch, driver.older)]
    own = [driver.scratch_path(), driver.older_path()]
    for copy in (*left, *own):
        btrfs_ioctl.snapshot(driver.present("layer"), copy.parent, copy.name, read_only=True)
    monkeypatch.setattr("drivers.btrfs._SCRATCH_AGE", 0.0)
    BtrfsDriver(btrfs_dir / "btrfs")
    assert not any(copy.exists() for copy in left)
    assert all(copy.exists() for copy in own)
    driver.cleanup()


def test_views_of_a_crashed_process_are_unmounted_at_the_next_open(btrfs_dir: Path) -> None:
    driver = BtrfsDriver(btrfs_dir / "btrfs")
    driver.create("layer")
    left = driver.home / "fsd" / "mapped" / "999999999-1-abc"
    left.mkdir(parents=True)
    syscalls.mount(driver.present("layer"), left, flags=syscalls.MS_BIND)
    BtrfsDriver(btrfs_dir / "btrfs")
    assert not left.exists()
    driver.remove("layer")
    driver.cleanup()


# -- sizes -------------------------------------------------------------------------------------


def test_logical_size_is_cached_until_the_generation_moves(driver: BtrfsDriver) -> None:
    driver.create("layer")
    root = driver.present("layer")
    (root / "file").write_bytes(bytes(1000))
    first = driver.read_write_disk_usage("layer")
    assert driver.read_write_disk_usage("layer") is first
    (root / "file").write_bytes(bytes(2500))
    assert driver.read_write_disk_usage("layer").size == 2500


def test_logical_size_of_a_restored_layer_is_counted_anew(driver: BtrfsDriver) -> None:
    driver.create("layer")
    driver.snapshots().take("layer", "c/s")
    (driver.present("layer") / "file").write_bytes(bytes(1000))
    assert driver.read_write_disk_usage("layer").size == 1000
    driver.snapshots().restore("c/s", "layer")
    assert driver.read_write_disk_usage("layer").size == 0


def test_ownership_by_extents_tells_own_from_shared(driver: BtrfsDriver) -> None:
    driver.create("base")
    (driver.present("base") / "inherited").write_bytes(os.urandom(1 << 20))
    driver.create("child", "base")
    root = driver.present("child")
    (root / "own").write_bytes(os.urandom(2 << 20))
    with (root / "own").open("rb") as source, (root / "twin").open("wb") as target:
        syscalls.clone_file(target.fileno(), source.fileno())
    found = driver.ownership("child")
    assert (found.exclusive, found.shared, found.method) == (2 << 20, 1 << 20, "extents")
    driver.remove("base")
    driver.finish_removals()
    btrfs_ioctl.wait_cleaned(driver.home)
    assert driver.ownership("child").exclusive == 3 << 20


# -- mounts and options ------------------------------------------------------------------------


def test_idmapped_views_are_shared_counted_and_read_only_when_asked(driver: BtrfsDriver) -> None:
    if not driver.supports_shifting():
        lacking("no idmapped mounts here")
    driver.create("layer")
    mappings = IDMappings((IDMap(0, 100000, 65536),), (IDMap(0, 100000, 65536),))
    writable = MountOptions(mappings=mappings)
    first, second = driver.get("layer", writable), driver.get("layer", writable)
    frozen = driver.get("layer", MountOptions(mappings=mappings, options=("ro",)))
    assert first == second != frozen
    with pytest.raises(OSError, match="Read-only"):
        (frozen / "file").touch()
    for _ in range(2):
        driver.put("layer")
        assert first.stat().st_uid == 100000
        with pytest.raises(LayerMounted):
            driver.remove("layer")
    driver.put("layer")
    driver.put("layer")
    assert not list((driver.home / "fsd" / "mapped").iterdir())
    driver.remove("layer")


@pytest.mark.parametrize(
    "options",
    [{"mountopt": "nodev"}, {"sise": "1"}, {"size": "big"}, {"min_space": "2g", "size": "1g"}],
)
def test_bad_driver_options_are_refused_before_anything_is_made(
    btrfs_dir: Path, options: dict[str, str]
) -> None:
    with pytest.raises(BadOption, match="btrfs"):
        BtrfsDriver(btrfs_dir / "btrfs", options)
    assert not (btrfs_dir / "btrfs").exists()


def test_mount_options_are_refused_except_ro(driver: BtrfsDriver) -> None:
    driver.create("layer")
    assert driver.get("layer", MountOptions(options=("ro",))) == driver.present("layer")
    with pytest.raises(BadOption, match="nosuid"):
        driver.get("layer", MountOptions(options=("nosuid",)))


# -- beside containers-storage -----------------------------------------------------------------


def test_layer_of_containers_storage_is_extended_and_used_by_it_again(
    containers_storage: Tool, store_dirs: StoreDirs, tmp_path: Path
) -> None:
    made = containers_storage("create-layer").stdout.split()[0]
    driver = BtrfsDriver(store_dirs.graphroot / "btrfs")
    try:
        assert list(driver.layer_ids()) == [made]
        (driver.get(made) / "ours").write_text("from python")
        driver.put(made)
    finally:
        driver.cleanup()
    child = containers_storage("create-layer", made).stdout.split()[0]
    target = containers_storage("mount", child).stdout.strip()
    assert (Path(target) / "ours").read_text() == "from python"
    containers_storage("unmount", child)
    containers_storage("delete-layer", child)
    driver = BtrfsDriver(store_dirs.graphroot / "btrfs")
    try:
        assert list(driver.layer_ids()) == [made]
    finally:
        driver.cleanup()
    containers_storage("delete-layer", made)
