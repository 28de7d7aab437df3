"""The containers-storage command line beside the real program: same scripts, same store, same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsd.storage_table import BY_NAME, COMMANDS
from tests.support.features import require
from tests.support.storage_changes import SCRIPTS
from tests.support.storage_scripts import FILL, IDS, LOOKS, MAPPED, PARTLY_MAPPED
from tests.support.storage_sides import Side, both, describe, differences, make_files, start_ours

ROOT = Path(__file__).parents[1]
DRIVERS = ("btrfs", "vfs", "overlay")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    require("containers-storage")
    if request.param == "overlay":
        require("overlay")
    return request.param


def test_every_lookup_answers_as_the_original(driver: str, btrfs_dir: Path, files: dict[str, str]) -> None:
    ours, real = both(btrfs_dir / "s", driver, files)
    found = differences(ours, real, FILL)
    assert ours.tables() == real.tables()
    assert ours.tree() == real.tree()
    for name, script in LOOKS.items():
        found += [f"{name}: {text}" for text in differences(ours, real, script)]
    assert not found, "\n\n".join(found)
    assert ours.tables() == real.tables()


def test_every_change_leaves_the_store_as_the_original_does(
    driver: str, btrfs_dir: Path, files: dict[str, str]
) -> None:
    found: list[str] = []
    for number, (name, script) in enumerate(SCRIPTS.items()):
        ours, real = both(btrfs_dir / f"s{number}", driver, files)
        found += [f"{name}: {text}" for text in differences(ours, real, script)]
        for what, a, b in (("tables", ours.tables(), real.tables()), ("tree", ours.tree(), real.tree())):
            if a != b:
                found.append(f"{name}: {what} {describe(a, b)}")
    assert not found, "\n\n".join(found)


def test_every_subcommand_and_flag_is_tried_in_sixty_scenarios() -> None:
    """Each driver runs all of them; what they try together is the whole command line."""
    scripts = {**LOOKS, **{f"change: {name}": script for name, script in SCRIPTS.items()}}
    assert len(SCRIPTS) >= 60
    assert len(scripts) >= 110
    tried: dict[str, set[str]] = {}
    for line in (line for script in (FILL, *scripts.values()) for line in script):
        words = line.removeprefix("<{tar} ").removeprefix("<{tgz} ").removeprefix("<{text} ").split(" ")
        while words and words[0].startswith("-"):
            words.pop(0)
        if words and (command := BY_NAME.get(words[0])):
            tried.setdefault(command.names[0], set()).update(words)
    for command in COMMANDS:
        for flag in command.flags:
            spelt = {f"-{spelling}" for spelling in flag.spellings}
            assert spelt & tried[command.names[0]], (command.names[0], spelt, "is not tried")


def test_mapped_layers_are_as_the_original_makes_them(btrfs_dir: Path, files: dict[str, str]) -> None:
    require("containers-storage")
    ours, real = both(btrfs_dir / "s", "vfs", files)
    assert not differences(ours, real, MAPPED)
    assert ours.tables() == real.tables()
    assert ours.tree() == real.tree()


def test_owners_outside_a_mapping_are_nobodys_as_in_the_original(
    btrfs_dir: Path, files: dict[str, str]
) -> None:
    require("containers-storage")
    ours, real = both(btrfs_dir / "s", "vfs", files)
    assert not differences(ours, real, PARTLY_MAPPED)
    assert ours.tables() == real.tables()
    mine, theirs = ([line for line in side.tree() if line.count("/") > 2] for side in (ours, real))
    assert mine == theirs
    assert any("65534:65534" in line for line in mine)


@pytest.mark.parametrize("words", ["exists base", "-s vfs exists base", "storage -s vfs exists base"])
def test_verbs_of_the_original_are_fsds_too(words: str, btrfs_dir: Path) -> None:
    store = ["-g", str(btrfs_dir / "g"), "-R", str(btrfs_dir / "r")]
    before, *after = words.split()
    argv = [before, *store, *after] if before == "storage" else [*store, before, *after]
    done = subprocess.run(
        [sys.executable, "-m", "fsd", *argv], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "base: false\n", "")


@pytest.mark.parametrize(
    "before",
    ["-g G -R R -s vfs --json", "--debug -j --root G --runroot=R --storage-driver vfs", "-Djg G -R R -s vfs"],
)
def test_flags_may_stand_before_the_word_storage(before: str, btrfs_dir: Path) -> None:
    places = {"G": str(btrfs_dir / "g"), "R": str(btrfs_dir / "r"), "--runroot=R": f"--runroot={btrfs_dir}/r"}
    flags = [places.get(word, word) for word in before.split()]

    def fsd(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "fsd", *flags, *words]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)

    made = fsd("storage", "create-layer", "-i", IDS["A"], "-n", "base")
    assert (made.returncode, json.loads(made.stdout)["id"]) == (0, IDS["A"])
    assert ("level=DEBUG" in made.stderr) is (not before.startswith("-g"))
    asked = fsd("storage", "exists", "aaa")
    assert (asked.returncode, json.loads(asked.stdout)) == (0, {"aaa": True})
    refused = fsd("--storage-opt", "nosuch", "storage", "create-layer")
    assert (refused.returncode, "unable to parse key/value option" in refused.stdout) == (1, True)


CONF = """
[storage]
driver = "vfs"
graphroot = "{home}/g"
runroot = "{home}/r"
transient_store = true
[storage.options]
remap-uids = "0:1000:10"
remap-gids = "0:1000:10"
"""


@pytest.mark.parametrize(
    ("flags", "transient", "mapped"),
    [
        ("", True, True),
        ("-g {home}/g -R {home}/r -s vfs", False, False),
        ("-g {home}/g -s vfs", False, False),
        ("-g {home}/g -R {home}/r -s vfs --transient-store", True, False),
    ],
)
def test_storage_conf_counts_where_no_flag_says_which_store_is_meant(
    flags: str, transient: bool, mapped: bool, tmp_path: Path
) -> None:
    """As in the newest containers-storage, whose ``--transient-store`` says the rest then."""
    conf = tmp_path / "storage.conf"
    conf.write_text(CONF.format(home=tmp_path))
    argv = [sys.executable, "-m", "fsd", "storage", *flags.format(home=tmp_path).split()]
    env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(conf)}

    def storage(*words: str) -> str:
        done = subprocess.run([*argv, *words], env=env, capture_output=True, text=True, cwd=ROOT, check=True)
        return done.stdout

    storage("create-layer", "-i", IDS["A"])
    storage("create-image", "-i", IDS["I"])
    storage("create-container", "-i", IDS["D"], IDS["I"])
    assert json.loads(storage("containers", "-j"))[0]["id"] == IDS["D"]
    kept, lost = tmp_path / "g/vfs-containers/containers.json", tmp_path / "r/vfs-containers"
    assert (lost / "volatile-containers.json").exists() is transient
    assert kept.exists() is not transient
    assert ("uidmap" in json.loads(storage("layers", "-j"))[0]) is mapped


def test_split_image_store_is_given_by_a_flag(btrfs_dir: Path, rootfs_tar: Path) -> None:
    where = ["-g", btrfs_dir / "g", "-R", btrfs_dir / "r", "-s", "vfs"]
    split = ["--imagestore", btrfs_dir / "i"]

    def fsd(*words: str | Path) -> str:
        argv = [sys.executable, "-m", "fsd", *map(str, words)]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True).stdout

    fsd(*where, *split, "import", rootfs_tar, "web")
    fsd(*where, *split, "storage", "create-layer", "-r", "-i", IDS["A"])
    fsd("storage", *where, *split, "create-layer", "-i", IDS["B"])
    assert IDS["A"] in os.listdir(btrfs_dir / "i/vfs/dir")
    assert os.listdir(btrfs_dir / "g/vfs/dir") == [IDS["B"]], "without -r it is made like a container's"
    for words in ([*where, *split, "storage", "images"], ["storage", *where, "images", *split]):
        assert "localhost/web:latest" in fsd(*words)
    assert "localhost/web:latest" in fsd(*where, *split, "images")
    assert fsd(*where, "storage", "images") == ""


def test_deletion_rules_hold_for_names_too(btrfs_dir: Path, files: dict[str, str]) -> None:
    ours = Side(start_ours, btrfs_dir / "s", "vfs", files)
    assert ours.start("create-layer -i {A} -n base")()[0] == 0
    assert ours.start("create-layer -i {B} base")()[0] == 0
    code, _, err = ours.start("delete-layer base")()
    assert (code, err) == (1, f"base: used by layer {IDS['B']}: layer has children\n")


def test_shutdown_by_force_ends(btrfs_dir: Path, files: dict[str, str]) -> None:
    ours = Side(start_ours, btrfs_dir / "s", "vfs", files)
    for line in ("create-layer -i {A}", "mount {A}", "mount {A}", "shutdown -f"):
        assert ours.start(line)()[0] == 0
    assert ours.start("mounted {A}")()[1] == ""


def test_reading_commands_import_nothing_slow() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"  # an editable install's finder brings modules of its own
        "from fsd import storage_cli, storage_show, storage_context; print(*(sys.modules.keys() - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    slow = {
        "argparse",
        "dataclasses",
        "enum",
        "json",
        "pathlib",
        "re",
        "typing",
        "trio",
        "pyfuse3",
        "_cffi_backend",
    }
    assert not slow & set(done.stdout.split())
