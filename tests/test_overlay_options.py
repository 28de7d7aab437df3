"""Options of the overlay driver, and additional stores."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.base import Creation, MountOptions
from drivers.errors import (
    BadOption,
    LayerMounted,
    LayerUnknown,
    NotSupported,
    PrerequisitesMissing,
)
from drivers.overlay import OverlayDriver
from drivers.overlay_links import LayerPlace
from drivers.overlay_mount import is_mounted
from tests.support.features import lacking
from tests.support.overlays import SHIFTED, archive, chain, mountinfo, opener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READ_ONLY = MountOptions(options=("ro",))


@pytest.fixture
def opened(require: Callable[[str], None]) -> Iterator[Callable[..., OverlayDriver]]:
    require("overlay")
    with opener() as open_driver:
        yield open_driver


@pytest.fixture
def driver(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> OverlayDriver:
    return opened(btrfs_dir)


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"colour": "red"}, BadOption, r"overlay\.colour"),
        ({"size": "10g"}, NotSupported, r"overlay\.size=10g"),
        ({"inodes": "1000"}, NotSupported, r"overlay\.inodes"),
        ({"size": "many"}, BadOption, "not a size"),
        ({"mount_program": "/no/such"}, BadOption, "mount_program"),
        ({"force_mask": "shared"}, BadOption, "mount_program only"),
        ({"force_mask": "rwx", "mount_program": "/bin/true"}, BadOption, "octal"),
        ({"skip_mount_home": "maybe"}, BadOption, "neither true nor false"),
        ({"additionallayerstore": "relative"}, BadOption, "absolute"),
        ({"additionallayerstore": "/x:y"}, BadOption, "PATH:ref"),
    ],
)
def test_bad_options_are_named(
    btrfs_dir: Path, options: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        OverlayDriver(btrfs_dir / "overlay", options)
    assert not (btrfs_dir / "overlay").exists()


def test_home_is_a_private_mount_until_cleanup(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    driver = opened(btrfs_dir)
    [line] = [line for line in mountinfo() if line.split()[4] == str(driver.home)]
    assert "shared:" not in line
    driver.create("a")
    driver.get("a")
    driver.cleanup()
    assert is_mounted(driver.home)
    driver.put("a")
    driver.cleanup()
    assert not is_mounted(driver.home)
    assert not is_mounted(opened(btrfs_dir, skip_mount_home="true").home)


def test_overlay_over_overlay_lacks_its_prerequisites(
    driver: OverlayDriver, opened: Callable[..., OverlayDriver]
) -> None:
    driver.create("a")
    with driver.mounted("a") as tree, pytest.raises(PrerequisitesMissing, match="overlayfs"):
        OverlayDriver(tree / "overlay")


def test_probes_are_remembered_under_the_runroot(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    driver = opened(btrfs_dir, runroot=str(btrfs_dir / "run"))
    shifting = driver.supports_shifting()
    flags = btrfs_dir / "run" / "overlay"
    assert {name.rpartition("-")[0] for name in os.listdir(flags)} == {
        "overlay",
        "metacopy()",
        "native-diff()",
        "idmapped-lower-dir",
    }
    assert (flags / "overlay-true").stat().st_size == 0
    assert (flags / f"idmapped-lower-dir-{str(shifting).lower()}").exists()
    (flags / "native-diff()-true").rename(flags / "native-diff()-false")
    assert ("Native Overlay Diff", "false") in opened(btrfs_dir, runroot=str(btrfs_dir / "run")).status()
    assert ("Native Overlay Diff", "true") in driver.status()


def test_metacopy_and_redirects_are_noticed(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    status = dict(opened(btrfs_dir, mountopt="metacopy=on,redirect_dir=on").status())
    assert status["Using metacopy"] == "true"
    assert status["Native Overlay Diff"] == "false"
    assert status["Backing Filesystem"] == "btrfs"


def test_mount_program_mounts(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver], require: Callable[[str], None]
) -> None:
    require("fuse")
    program = Path("/usr/bin/fuse-overlayfs")
    if not program.exists():
        lacking("no fuse-overlayfs")
    driver = opened(btrfs_dir, mount_program=str(program))
    assert (driver.home / ".has-mount-program").read_text() == "true"
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("gone", "kept"))
    driver.apply_diff("b", archive(".wh.gone", "new"))
    with driver.mounted("b") as tree:
        assert sorted(os.listdir(tree)) == ["kept", "new"]
        (tree / "kept").unlink()
        [line] = [line for line in mountinfo() if line.split()[4] == str(tree)]
        assert "fuse.fuse-overlayfs" in line
    assert [(c.path, c.kind.value) for c in driver.changes("b", "a")] == [
        (b"/gone", "D"),
        (b"/kept", "D"),
        (b"/new", "A"),
    ]
    with pytest.raises(NotSupported, match="shifts no IDs"):
        driver.get("b", MountOptions(mappings=SHIFTED))


def test_failing_mount_program_tells_why(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    program = btrfs_dir / "program"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    program.chmod(0o755)
    driver = opened(btrfs_dir, mount_program=str(program))
    driver.create("a")
    with pytest.raises(OSError, match="it is broken"):
        driver.get("a")


def test_force_mask_keeps_real_modes_in_attributes(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    program = Path("/usr/bin/fuse-overlayfs")
    if not program.exists():
        lacking("no fuse-overlayfs")
    driver = opened(btrfs_dir, mount_program=str(program), force_mask="private")
    driver.create("a")
    diff = driver.home / "a" / "diff"
    assert stat.S_IMODE(diff.stat().st_mode) == 0o700
    assert os.getxattr(diff, "user.containers.override_stat") == b"0:0:0555"
    driver.apply_diff("a", archive(("dir/", {"mode": 0o2750, "gid": 7}), ("dir/file", FORCED), "dir/gone"))
    driver.create("b", "a")
    driver.apply_diff("b", archive("dir/new", "dir/.wh.gone"))
    for name in ("a", "b"):
        with driver.mounted(name, READ_ONLY) as tree:
            assert _mode_and_owner(tree / "dir") == (0o2750, 0, 7)
            assert _mode_and_owner(tree / "dir" / "file") == (0o4711, 33, 34)
            assert (tree / "dir" / "gone").exists() == (name == "a")
        assert _mode_and_owner(driver.home / name / "diff" / "dir") == (0o700, 0, 0)


FORCED = {"mode": 0o4711, "uid": 33, "gid": 34}


def _mode_and_owner(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def test_user_namespace_uses_user_attributes(ext4_dir: Path) -> None:
    """Unprivileged: ``userxattr`` mounts, whiteouts and opaque marks included."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", _IN_USERNS, str(ext4_dir)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["kept", "y"]


_IN_USERNS = """
import os, sys
from pathlib import Path
from drivers.overlay import OverlayDriver
from tests.support.overlays import archive, chain
driver = OverlayDriver(Path(sys.argv[1]) / "overlay")
chain(driver, "a", "b")
driver.apply_diff("a", archive("gone", "kept", "dir/", "dir/x"))
driver.apply_diff("b", archive(".wh.gone", ".wh.dir"))
driver.apply_diff("b", archive("dir/"))
with driver.mounted("b") as tree:
    (tree / "dir").rmdir()
    print(*os.listdir(tree))
    (tree / "dir").mkdir()
print(os.getxattr(driver.home / "b" / "diff" / "dir", "user.overlay.opaque").decode())
"""


# -- other stores -------------------------------------------------------------------------------


def test_additional_image_store_serves_layers_below(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    shared = opened(btrfs_dir / "shared")
    chain(shared, "a", "b")
    shared.apply_diff("a", archive("in-a"))
    shared.apply_diff("b", archive("in-b"))
    before = sorted(map(str, shared.home.rglob("*")))
    driver = opened(btrfs_dir / "own", imagestore=str(btrfs_dir / "shared"), runroot=str(btrfs_dir / "run"))
    assert driver.additional_image_stores() == (btrfs_dir / "shared",)
    assert driver.exists("b")
    assert list(driver.layer_ids()) == []
    driver.create("c", "b")
    with driver.mounted("c") as tree:
        assert sorted(os.listdir(tree)) == ["in-a", "in-b"]
        (tree / "in-b").unlink()
    assert [change.path for change in driver.changes("c", "b")] == [b"/in-b"]
    with driver.mounted("b") as tree:
        assert tree.is_relative_to(btrfs_dir / "run")
        with pytest.raises(OSError, match="Read-only"):
            (tree / "x").touch()
    with pytest.raises(LayerUnknown, match="read-only store"):
        driver.remove("b")
    assert sorted(map(str, shared.home.rglob("*"))) == before


def test_more_layers_of_the_image_store_than_a_page_of_options_names(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    split = btrfs_dir / "a-long-name-of-a-directory" / "in-which-images-are"
    driver = opened(btrfs_dir / "own", imageroot=str(split), runroot=str(btrfs_dir / "run"))
    layers = [str(number) for number in range(60)]
    for parent, layer in zip([None, *layers], layers, strict=False):
        driver.create(layer, parent, Creation(in_image_store=True))
    driver.apply_diff("0", archive("at-the-bottom"))
    driver.create_read_write("c", layers[-1])
    assert (driver.path_of("c").parent, driver.path_of("7").parent) == (driver.home, split / "overlay")
    with driver.mounted("c") as tree:
        assert os.listdir(tree) == ["at-the-bottom"]
        (tree / "new").touch()
    assert [change.path for change in driver.changes("c", layers[-1])] == [b"/new"]


def test_links_lost_in_the_image_store_are_made_again(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    driver = opened(btrfs_dir / "own", imageroot=str(btrfs_dir / "split"), runroot=str(btrfs_dir / "run"))
    driver.create("a", None, Creation(in_image_store=True))
    driver.create_read_write("c", "a")
    for link in (btrfs_dir / "split/overlay/l").iterdir():
        link.unlink()
    with driver.mounted("c"), driver.mounted("a") as tree:
        assert tree.is_relative_to(btrfs_dir / "run")
        with pytest.raises(LayerMounted):
            driver.apply_diff("a", archive("late"))
        with pytest.raises(LayerMounted):
            driver.remove("a")
    driver.remove("a")
    assert list(driver.layer_ids()) == ["c"]
    assert os.listdir(btrfs_dir / "split/overlay") == ["l"]


def test_layer_place_without_link_is_unknown(driver: OverlayDriver) -> None:
    (driver.home / "stray").mkdir()
    assert not driver.exists("stray")
    with pytest.raises(LayerUnknown):
        LayerPlace(driver.home / "stray", driver.home).link()
