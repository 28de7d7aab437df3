"""Options that change while a store is open, and while it is mounted."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import BadOption, NotSupported
from drivers.idmap import IDMap
from store.config import StoreOptions, fingerprint, load_options, watched_directories
from store.errors import BadValue, InvalidMappings
from store.options import ContainerOptions, LayerOptions
from store.reloading import Reloaded
from store.store import Store
from tests.support import loops
from tests.support.daemon import running
from tests.support.features import require
from tests.support.filled import eventually

BASE_TAR = (Path(__file__).parent / "data" / "tables" / "base.tar").read_bytes()
PLACES = '[storage]\ndriver = "{driver}"\ngraphroot = "{home}/g"\nrunroot = "{home}/r"\n'
FULL = """
[storage.options]
additionalimagestores = ["{home}/other"]
disable-volatile = true
remap-uids = "0:1000:10"
remap-gids = "0:2000:10"
auto-userns-max-size = 70000
pull_options = {{enable_partial_images = "true"}}
[storage.options.btrfs]
min_space = "1m"
"""


@pytest.fixture
def conf(btrfs_dir, monkeypatch):
    """A storage.conf in force; write to it by ``write``."""
    path = btrfs_dir / "conf" / "storage.conf"
    path.parent.mkdir()
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(path))
    write(path, "")
    yield path
    loops.run("btrfs", "quota", "disable", btrfs_dir)  # the filesystem is not this test's alone


def write(conf: Path, text: str, driver: str = "btrfs") -> None:
    conf.write_text((PLACES + text).format(home=conf.parents[1], driver=driver))


def test_options_of_an_open_store_change_with_the_file(conf, btrfs_dir):
    other = StoreOptions(graphroot=str(btrfs_dir / "other"), runroot=str(btrfs_dir / "r2"), driver="btrfs")
    with Store(other) as filled:
        layer, _ = filled.put_layer(io.BytesIO(BASE_TAR))
        filled.create_image(names=["img"], layer=layer.id)
    with Store(load_options()) as store:
        before = store.create_layer()
        assert store.images() == []
        assert store.reload_options() == Reloaded()
        write(conf, FULL)
        done = store.reload_options()
        assert done.pending == done.warnings == ()
        assert {"pull_options", "uidmap", "gidmap", "driver_options", "disable_volatile"} < set(done.changed)
        assert {"additional_image_stores", "auto_userns_max_size"} < set(done.changed)
        assert dict(store.options.pull_options) == {"enable_partial_images": "true"}
        made = store.create_layer()
        assert (made.uidmap, made.gidmap) == ((IDMap(0, 1000, 10),), (IDMap(0, 2000, 10),))
        assert store.layer(before.id).uidmap == ()
        container = store.create_container(image="img", options=ContainerOptions(volatile=True))
        assert "Volatile" not in container.flags
        with pytest.raises(BadOption, match="min_space"):
            store.create_layer(writeable=True, options=LayerOptions(storage_opts={"size": "4096"}))
        store.delete_container(container.id)
        write(conf, "")
        assert "driver_options" in store.reload_options().changed
        assert store.images() == []
        assert store.create_layer().uidmap == ()
        assert store.reload_options() == Reloaded()


@pytest.mark.parametrize(
    ("driver", "text", "pending"),
    [
        ("vfs", "", ("driver",)),
        ("btrfs", "transient_store = true", ("transient_store",)),
        ("btrfs", 'imagestore = "{home}/split"', ("image_store",)),
    ],
)
def test_what_an_open_store_cannot_change_is_named_and_stays(conf, driver, text, pending):
    with Store(load_options()) as store:
        write(conf, text, driver)
        assert store.reload_options().pending == pending
        assert store.options.driver == store.driver_name == "btrfs"
        assert not store.transient_store
        assert store.image_store is None


def test_places_of_another_store_are_named(conf, btrfs_dir):
    with Store(load_options()) as store:
        elsewhere = replace(load_options(), graphroot=str(btrfs_dir / "elsewhere"))
        assert store.reload_options(elsewhere).pending == ("graphroot",)
        assert store.graphroot == btrfs_dir / "g"


@pytest.mark.parametrize("driver", ["vfs", "overlay"])
def test_options_of_other_drivers_change_as_far_as_nothing_is_mounted_by_them(btrfs_dir, driver):
    if driver == "overlay":
        require("overlay")
    options = StoreOptions(graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), driver=driver)
    with Store(options) as store:
        texts = (f"{driver}.ignore_chown_errors=true", f"{driver}.imagestore={btrfs_dir}/other")
        done = store.reload_options(replace(options, driver_options=texts))
        assert (done.changed, done.pending) == (("driver_options",), ())
        assert store.driver.ignore_chown_errors
        assert list(store.driver.additional_image_stores()) == [btrfs_dir / "other"]
        if driver == "overlay":
            texts = ("overlay.mountopt=nodev",)
            done = store.reload_options(replace(options, driver_options=texts))
            assert done.pending == ("overlay.mountopt",)
            assert "mountopt" not in store.driver.options
        store.shutdown()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[storage", BadValue, "is not TOML"),
        ("transient_store = 3", BadValue, r"storage.conf:\d+: storage.transient_store must be"),
        ('[storage.options]\nremap-uids = "0:1"', InvalidMappings, "no ID mapping"),
        ('[storage.options.btrfs]\nmin_space = "lots"', BadOption, "min_space"),
        ('[storage.options.btrfs]\nnosuch = "1"', BadOption, "unknown option btrfs.nosuch"),
    ],
)
def test_broken_file_leaves_every_option_as_it_was(conf, text, error, message):
    write(conf, '[storage.options.btrfs]\nmin_space = "1m"')
    with Store(load_options()) as store:
        before, of_driver = store.options, dict(store.driver.options)
        write(conf, text)
        with pytest.raises(error, match=message):
            store.reload_options()
        assert store.options is before
        assert store.driver.options == of_driver
        assert store.driver.quotas.min_space == 1 << 20
        write(conf, "")
        assert "driver_options" in store.reload_options().changed


def test_option_the_driver_cannot_serve_leaves_every_option_as_it_was(btrfs_dir):
    require("overlay")
    options = StoreOptions(graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), driver="overlay")
    with Store(options) as store:
        with pytest.raises(NotSupported, match=r"overlay\.size"):
            store.reload_options(replace(options, driver_options=("overlay.size=10g",)))
        assert store.options is options
        store.shutdown()


def test_unknown_keys_are_named_with_their_line(conf):
    with Store(load_options()) as store:
        write(conf, "nosuch = 1\n[storage.options]\nwrong-key = 2\n")
        assert store.reload_options().warnings == (
            f"{conf}:5: unknown key 'nosuch' in [storage] is ignored",
            f"{conf}:7: unknown key 'wrong-key' in [storage.options] is ignored",
        )


def test_files_to_watch_are_those_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("store.config.SYSTEM_DIRECTORIES", (tmp_path / "usr", tmp_path / "etc"))
    assert watched_directories({}, uid=0) == []
    for place in ("etc/storage.conf.d", "usr", "etc/storage.rootful.conf.d/0"):
        (tmp_path / place).mkdir(parents=True)
    places = {str(path.relative_to(tmp_path)) for path in watched_directories({}, uid=0)}
    assert places == {
        "usr",
        "etc",
        "etc/storage.conf.d",
        "etc/storage.rootful.conf.d",
        "etc/storage.rootful.conf.d/0",
    }
    seen = [fingerprint({}, uid=0)]
    for place in ("etc/storage.conf", "etc/storage.conf.d/a.conf", "etc/storage.rootful.conf.d/0/b.conf"):
        (tmp_path / place).write_text("")
        seen.append(fingerprint({}, uid=0))
    assert len({repr(value) for value in seen}) == len(seen)
    named = {
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "here" / "x"),
        "CONTAINERS_STORAGE_CONF_OVERRIDE": "/dev/null",
    }
    assert watched_directories(named, uid=0) == []
    (tmp_path / "here").mkdir()
    assert watched_directories(named, uid=0) == [tmp_path / "here"]


def test_daemon_takes_over_a_file_that_was_edited_and_tells_of_one_it_cannot_read(
    conf, store_dirs, btrfs_dir
):
    require("fuse")
    point = btrfs_dir / "mnt"
    point.mkdir()
    with running(store_dirs, point, conf=conf, quiet=False) as daemon:
        config, health = daemon / "control/config", daemon / "control/health"

        def shows(text: str) -> bool:
            return text in config.read_text()

        assert not shows("min_space")
        write(conf, '[storage.options.btrfs]\nmin_space = "1m"\nnosuch-key')
        assert eventually(lambda: shows("NOT IN FORCE AS IT IS NOW: "))
        assert "everything stays as it was" in daemon.errors()
        assert "warn configuration: as it is now it cannot be in force: " in health.read_text()
        write(conf, 'nosuch = 1\n[storage.options.btrfs]\nmin_space = "1m"\n', driver="vfs")
        assert eventually(lambda: shows("driver options: btrfs.min_space=1m"))
        assert not shows("NOT IN FORCE")
        assert "ok   configuration: " in health.read_text()
        assert shows("in force after the next start: driver")
        replaced = conf.with_name("new")
        write(replaced, "")
        replaced.rename(conf)  # as editors do
        assert eventually(lambda: not shows("min_space"))
    said = daemon.log.read_text()
    assert f"{conf}:5: unknown key 'nosuch' in [storage] is ignored" in said
    assert "not in force until fsd starts anew: driver" in said


def test_daemon_reads_its_options_anew_on_sighup(conf, store_dirs, btrfs_dir):
    require("fuse")
    point, link = btrfs_dir / "mnt", btrfs_dir / "elsewhere" / "storage.conf"
    point.mkdir()
    link.parent.mkdir()
    link.symlink_to(conf)  # what happens in the directory of its target is not noticed
    with running(store_dirs, point, conf=link, quiet=False) as daemon:
        write(conf, '[storage.options.btrfs]\nmin_space = "2m"\n')
        daemon.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "btrfs.min_space=2m" in (daemon / "control/config").read_text())


def test_daemon_takes_over_settings_that_were_edited(conf, store_dirs, btrfs_dir):
    require("fuse")
    point, toml = btrfs_dir / "mnt", conf.with_name("fsd.toml")
    point.mkdir()
    with running(store_dirs, point, conf=conf, quiet=False) as daemon:
        config = daemon / "control/config"

        def says(text: str) -> bool:
            toml.write_text(text)
            return eventually(lambda: _same_settings(config, text))

        def snapshots_after_a_write(name: str) -> int:
            container = daemon / "containers" / name
            container.mkdir()
            (container / "rootfs/file").write_text("x")
            return len(list((container / "snapshots").iterdir()))

        assert snapshots_after_a_write("before") == 1
        assert says("[bursts]\nenabled = false\n[trash]\nlifetime = 0\n")
        assert snapshots_after_a_write("without") == 0
        (daemon / "containers/without").rmdir()
        assert list((daemon / "trash").iterdir()) == []  # with no lifetime it goes at once
        assert says("[bursts]\nquiet = 0\ninterval = 0\n")
        container = daemon / "containers/often"
        container.mkdir()
        for number in range(3):
            (container / "rootfs/file").write_text(str(number))
        assert len(list((container / "snapshots").iterdir())) == 3
        toml.write_text("[bursts]\nquiet = 'long'\n")
        assert eventually(lambda: "NOT IN FORCE AS IT IS NOW" in config.read_text())
        assert "fsd.toml was not taken over, everything stays as it was" in daemon.errors()
        assert "quiet" in daemon.errors()
        assert "warn configuration: " in (daemon / "control/health").read_text()
        assert "quiet = 0 " in config.read_text()
        assert says("[plane]\nkeep-awake = false\n")
        assert "in force after the next start: plane.keep-awake" in config.read_text()
        toml.unlink()
        assert eventually(lambda: "# fsd.toml: not found" in config.read_text())


def test_background_work_follows_an_interval_that_was_edited(conf, store_dirs, btrfs_dir):
    require("fuse")
    point, toml = btrfs_dir / "mnt", conf.with_name("fsd.toml")
    point.mkdir()
    toml.write_text("[background]\nexpire = 3600\n")
    with running(store_dirs, point, conf=conf, quiet=False) as daemon:
        (daemon / "containers/gone").mkdir()
        (daemon / "containers/gone").rmdir()
        assert len(list((daemon / "trash").iterdir())) == 1
        toml.write_text("[background]\nexpire = 0.2\n[trash]\nlifetime = 0.1\nminimum-age = 0\n")
        assert eventually(lambda: list((daemon / "trash").iterdir()) == [])


def _same_settings(config: Path, text: str) -> bool:
    """Whether the lines of an fsd.toml are in force."""
    shown = [line.partition("#")[0].strip() for line in config.read_text().splitlines()]
    return all(line in shown for line in text.splitlines())
