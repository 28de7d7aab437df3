"""storage.conf, drop-ins and environment, in order of precedence."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.idmap import IDMap
from store import config
from store.config import load_options
from store.errors import BadValue, InvalidMappings


@pytest.fixture
def etc(tmp_path, monkeypatch) -> Path:
    """Vendor's, administrator's and user's directories, all private."""
    directories = tuple(tmp_path / name for name in ("usr", "etc"))
    monkeypatch.setattr(config, "SYSTEM_DIRECTORIES", directories)
    for directory in directories:
        directory.mkdir()
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(path: Path, text: str, **env: str):
    return load_options({"CONTAINERS_STORAGE_CONF": str(write(path / "own.conf", text))} | env, uid=0)


def test_without_any_file_root_gets_the_defaults(etc):
    options = load_options({}, uid=0)
    assert (options.graphroot, options.runroot) == ("/var/lib/containers/storage", "/run/containers/storage")
    assert (options.driver, options.driver_options, options.sources) == ("", (), ())


def test_user_beats_administrator_beats_vendor(etc):
    for name in ("usr", "etc", "xdg/containers"):
        write(etc / name / "storage.conf", f'[storage]\ngraphroot = "/{name}"\n')
    assert load_options({"XDG_CONFIG_HOME": str(etc / "xdg")}, uid=0).graphroot == "/xdg/containers"
    assert load_options({}, uid=0).graphroot == "/etc" == os.path.realpath("/etc")
    (etc / "etc" / "storage.conf").unlink()
    assert load_options({}, uid=0).graphroot == "/usr"


def test_named_file_excludes_all_others_and_must_exist(etc):
    write(etc / "etc" / "storage.conf", '[storage]\ndriver = "vfs"\n')
    write(etc / "etc" / "storage.conf.d" / "10.conf", '[storage]\nrunroot = "/elsewhere"\n')
    own = write(etc / "own.conf", '[storage]\ngraphroot = "/own"\n')
    options = load_options({"CONTAINERS_STORAGE_CONF": str(own)}, uid=0)
    assert (options.graphroot, options.driver, options.runroot) == ("/own", "", "/run/containers/storage")
    assert options.sources == (str(own),)
    with pytest.raises(OSError, match=r"nowhere\.conf"):
        load_options({"CONTAINERS_STORAGE_CONF": str(etc / "nowhere.conf")}, uid=0)


def test_drop_ins_are_merged_by_name_and_override_comes_last(etc):
    write(
        etc / "etc" / "storage.conf",
        '[storage]\ndriver = "vfs"\ngraphroot = "/a"\n[storage.options]\nsize="1G"\n',
    )
    write(etc / "usr" / "storage.conf.d" / "20.conf", '[storage]\ngraphroot = "/b"\n')
    write(etc / "etc" / "storage.conf.d" / "10.conf", '[storage]\ngraphroot = "/c"\nrunroot = "/d"\n')
    options = load_options({}, uid=0)
    assert (options.driver, options.graphroot, options.runroot) == ("vfs", "/b", "/d")
    assert "btrfs.size=1G" in options.driver_options
    write(etc / "etc" / "storage.conf.d" / "20.conf", "")  # masks its namesake
    assert load_options({}, uid=0).graphroot == "/c"
    last = write(etc / "last.conf", '[storage]\nrunroot = "/last"\n')
    assert load_options({"CONTAINERS_STORAGE_CONF_OVERRIDE": str(last)}, uid=0).runroot == "/last"


def test_rootful_and_rootless_drop_ins_are_told_apart(etc):
    write(etc / "etc" / "storage.rootful.conf.d" / "a.conf", '[storage]\ndriver = "btrfs"\n')
    write(etc / "etc" / "storage.rootless.conf.d" / "a.conf", '[storage]\ndriver = "vfs"\n')
    write(etc / "etc" / "storage.rootless.conf.d" / "1000" / "b.conf", '[storage]\ndriver = "overlay"\n')
    assert load_options({}, uid=0).driver == "btrfs"
    assert load_options({"HOME": "/h"}, uid=7).driver == "vfs"
    assert load_options({"HOME": "/h"}, uid=1000).driver == "overlay"


def test_environment_beats_files(tmp_path):
    text = '[storage]\ndriver = "vfs"\n[storage.options.btrfs]\nmin_space = "1G"\n'
    options = load(
        tmp_path, text, STORAGE_DRIVER="overlay2", STORAGE_OPTS="overlay.mountopt=nodev,btrfs.size=2G"
    )
    assert options.driver == "overlay"
    assert options.driver_options == ("overlay.mountopt=nodev", "btrfs.size=2G")


def test_generic_options_reach_only_drivers_that_know_them(tmp_path):
    text = """
[storage.options]
mountopt = "nodev"
size = "10G"
ignore_chown_errors = true
[storage.options.overlay]
size = "5G"
"""
    options = load(tmp_path, text).driver_options
    assert set(options) == {
        "overlay.mountopt=nodev",
        "zfs.mountopt=nodev",
        "btrfs.size=10G",
        "overlay.size=5G",
        "zfs.size=10G",
        "overlay.ignore_chown_errors=true",
        "vfs.ignore_chown_errors=true",
    }


def test_all_option_keys(tmp_path):
    text = """
[storage]
driver_priority = ["btrfs", "vfs"]
[storage.options]
additionalimagestores = ["/one", "/two"]
additionallayerstores = ["/served", "/other:ref"]
root-auto-userns-user = "storage"
auto-userns-min-size = 2048
auto-userns-max-size = "4096"
disable-volatile = true
remap-uids = "0:100000:65536,65536:300000:10"
remap-gids = "0:200000:65536"
pull_options = {enable_partial_images = "true"}
"""
    options = load(tmp_path, text)
    assert options.driver_priority == ("btrfs", "vfs")
    assert options.additional_image_stores == ("/one", "/two")
    assert "vfs.imagestore=/one,/two" in options.driver_options
    assert "overlay.additionallayerstore=/served,/other:ref" in options.driver_options
    assert options.root_auto_userns_user == "storage"
    assert (options.auto_userns_min_size, options.auto_userns_max_size) == (2048, 4096)
    assert options.disable_volatile
    assert options.uidmap == (IDMap(0, 100000, 65536), IDMap(65536, 300000, 10))
    assert options.gidmap == (IDMap(0, 200000, 65536),)
    assert options.pull_options == (("enable_partial_images", "true"),)
    assert options.warnings == ()


def test_paths_expand_variables_and_resolve_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = f'[storage]\ngraphroot = "{tmp_path}/link/$NAME/${{UID}}"\nrunroot = "$TOP/r"\n'
    options = load(tmp_path, text, NAME="n", TOP="/top")
    assert options.graphroot == f"{tmp_path}/real/n/0"
    assert options.runroot == "/top/r"


def test_unprivileged_user_gets_own_directories(etc):
    env = {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}
    write(etc / "usr" / "storage.conf", '[storage]\ngraphroot = "/var/lib/containers/storage"\n')
    options = load_options(env, uid=7)
    assert options.graphroot == "/home/u/.local/share/containers/storage"
    assert options.runroot == "/run/user/7/containers"
    assert load_options(env | {"XDG_DATA_HOME": "/data"}, uid=7).graphroot == "/data/containers/storage"
    write(etc / "etc" / "storage.conf", '[storage]\nrootless_storage_path = "$HOME/own"\n')
    assert load_options(env, uid=7).graphroot == "/home/u/own"


def test_unknown_keys_are_named_with_their_line(tmp_path, caplog):
    text = """[storage]
driver = "vfs"
drivr = "btrfs"

[storage.options]
  colour = "red"
transient = 1

[other]
"""
    options = load(tmp_path, text)
    path = tmp_path / "own.conf"
    assert options.warnings == (
        f"{path}:9: unknown table or key 'other' is ignored",
        f"{path}:3: unknown key 'drivr' in [storage] is ignored",
        f"{path}:6: unknown key 'colour' in [storage.options] is ignored",
        f"{path}:7: unknown key 'transient' in [storage.options] is ignored",
    )
    assert [record.getMessage() for record in caplog.records] == list(options.warnings)
    assert options.driver == "vfs"


def test_unsupported_keys_are_named(tmp_path):
    warnings = load(tmp_path, '[storage.options]\nuse_composefs = "true"\n').warnings
    where = f"{tmp_path}/own.conf:2"
    assert warnings == (f"{where}: use_composefs in [storage.options] is not supported and ignored",)


@pytest.mark.parametrize("table", ["storage", "storage.options"])
def test_split_image_store(tmp_path, table):
    options = load(tmp_path, f'[{table}]\nimagestore = "/i"\n')
    assert (options.image_store, options.warnings) == ("/i", ())
    drivers = ("btrfs", "overlay", "vfs")
    assert set(options.options_for_driver()) == {f"{name}.imageroot=/i" for name in drivers}
    read = options.options_for_driver(writable_split=False)
    assert set(read) == {f"{name}.imagestore=/i" for name in drivers}
    more = replace(options, driver_options=("vfs.imagestore=/more",))
    assert more.options_for_driver(writable_split=False)[-1] == "vfs.imagestore=/i,/more"
    assert replace(options, graphroot="/i").options_for_driver() == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[storage", "is not TOML"),
        ("storage = 1", "storage must be a table"),
        ("[storage]\ngraphroot = [1]", r"own\.conf:2: storage\.graphroot must be text"),
        ("[storage.options]\nauto-userns-min-size = 'many'", "must be a whole number"),
        ("[storage.options]\ndisable-volatile = 'perhaps'", "must be true or false"),
        ("[storage.options]\nadditionalimagestores = [1]", "must be a list of texts"),
        ("[storage.options]\nremap-user = 'no-such-user-here'", "has no ranges for that name"),
    ],
)
def test_malformed_values_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(BadValue, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["0:1", "a:b:c", "0:0:0", "0:1:5,3:9:5", "0:1:4294967295"])
def test_malformed_mappings_are_refused(tmp_path, text):
    with pytest.raises(InvalidMappings):
        load(tmp_path, f'[storage.options]\nremap-uids = "{text}"\n')
