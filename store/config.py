"""Options of a store, from storage.conf and the environment (containers-storage.conf(5), FORMAT 8).

Order of precedence, as in containers/storage: ``STORAGE_DRIVER`` and ``STORAGE_OPTS``; the file named by
``CONTAINERS_STORAGE_CONF_OVERRIDE``; then either the one file named by ``CONTAINERS_STORAGE_CONF``, or
the user's, the system's or the vendor's ``containers/storage.conf``, whichever is found first, with the
drop-ins of all three; then the defaults.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from drivers.idmap import IDMap, IDMappings
from store.errors import BadValue
from store.idranges import Range, check_mappings, parse_mappings, subordinate_ids

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds to wait for a lock when nobody names a bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where a store is and how it behaves.

    Attributes:
        graphroot, runroot: persistent state, and state a reboot loses; absolute paths as text.
        driver: graph driver's name; empty lets :func:`drivers.open_driver` choose.
        driver_options: ``<driver>.<key>=<value>`` texts.
        driver_priority: drivers to try first when none is named.
        additional_image_stores: graphroots of read-only stores whose images are usable here.
        image_store: graphroot of a split image store, where images and their layers are made; empty if they
            are made in ``graphroot``.
        uidmap, gidmap: mapping of layers that ask for none; empty is the identity.
        root_auto_userns_user: whose subordinate IDs automatic user namespaces take; empty is ``containers``.
        auto_userns_min_size, auto_userns_max_size: bounds of an automatic user namespace, in IDs.
        transient_store: containers and their layers are recorded in the runroot, where a reboot loses them.
            Tools up to 1.44 do not see them.
        disable_volatile: ignore a container's wish to be volatile.
        pull_options: ``[storage.options] pull_options``; containers/storage's ``PullOptions``.
        shift_ids: keep layers of mapped containers unmapped and shift owners when mounting, where the driver
            can. Such containers have wrong owners in tools whose driver cannot.
        lock_timeout: seconds to wait for a lock before LockTimeout.
        sources: configuration files that were read, in order.
        warnings: what was odd in them: file, line and text.
    """

    graphroot: str = ""
    runroot: str = ""
    driver: str = ""
    driver_options: tuple[str, ...] = ()
    driver_priority: tuple[str, ...] = ()
    additional_image_stores: tuple[str, ...] = ()
    image_store: str = ""
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    root_auto_userns_user: str = ""
    auto_userns_min_size: int = 1024
    auto_userns_max_size: int = 65536
    transient_store: bool = False
    disable_volatile: bool = False
    pull_options: tuple[tuple[str, str], ...] = ()
    shift_ids: bool = False
    lock_timeout: float = DEFAULT_TIMEOUT
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """``image_store`` as an absolute path; empty if there is none, or it is the graphroot."""
        split = os.path.abspath(self.image_store) if self.image_store else ""
        return "" if split == os.path.abspath(self.graphroot) else split

    def options_for_driver(self, *, writable_split: bool = True) -> tuple[str, ...]:
        """``driver_options``, and where the split image store is.

        Args:
            writable_split: whether layers are made there; else it is the first of the stores to look in.
        """
        if not self.split:
            return self.driver_options
        if writable_split:
            return (*self.driver_options, *(f"{name}.imageroot={self.split}" for name in _OURS))
        given = dict(option.split("=", 1) for option in self.driver_options if "=" in option)
        keys = [f"{name}.imagestore" for name in _OURS]
        stores = [",".join(filter(None, (self.split, given.get(key)))) for key in keys]
        return (*self.driver_options, *map("=".join, zip(keys, stores, strict=True)))


SYSTEM_DIRECTORIES: Final = (Path("/usr/share/containers"), Path("/etc/containers"))
"""Vendor's and administrator's configuration, in ascending precedence."""

_CONF: Final = "CONTAINERS_STORAGE_CONF"
_OVERRIDE: Final = "CONTAINERS_STORAGE_CONF_OVERRIDE"
_GRAPHROOT: Final = "/var/lib/containers/storage"
_RUNROOT: Final = "/run/containers/storage"

_TEXT, _BOOL, _NUMBER, _LIST, _TABLE = "text", "true or false", "a whole number", "a list of texts", "a table"

_STORAGE: Final = {
    "driver": _TEXT,
    "graphroot": _TEXT,
    "runroot": _TEXT,
    "rootless_storage_path": _TEXT,
    "driver_priority": _LIST,
    "imagestore": _TEXT,
    "transient_store": _BOOL,
    "options": _TABLE,
}
_OPTIONS: Final = {
    "additionalimagestores": _LIST,
    "additionallayerstores": _LIST,
    "auto-userns-max-size": _NUMBER,
    "auto-userns-min-size": _NUMBER,
    "disable-volatile": _BOOL,
    "imagestore": _TEXT,
    "pull_options": _TABLE,
    "remap-gids": _TEXT,
    "remap-group": _TEXT,
    "remap-uids": _TEXT,
    "remap-user": _TEXT,
    "root-auto-userns-user": _TEXT,
}
_GENERIC: Final = {
    "force_mask": ("overlay",),
    "ignore_chown_errors": ("overlay", "vfs"),
    "inodes": ("overlay",),
    "mount_program": ("overlay",),
    "mountopt": ("overlay", "zfs"),
    "size": ("btrfs", "overlay", "zfs"),
    "skip_mount_home": ("overlay",),
}
"""Driver options that may stand in ``[storage.options]``, and the drivers that know them.

containers/storage 1.43 gives them to whatever driver is configured, which breaks btrfs."""
_OURS: Final = ("btrfs", "overlay", "vfs")
_DRIVERS: Final = ("btrfs", "overlay", "vfs", "zfs", "aufs", "thinpool")
_UNSUPPORTED: Final = {
    ("storage.options", "ostree_repo"),
    ("storage.options", "use_composefs"),
}


class _Warnings:
    """Collects what is odd, and logs it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, path: Path, line: int, text: str) -> None:
        self.texts.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")
        import logging  # slow, and rarely needed

        logging.getLogger(__name__).warning("%s", self.texts[-1])


def load_options(env: Mapping[str, str] | None = None, *, uid: int | None = None) -> StoreOptions:
    """Options from the configuration files and the environment.

    Args:
        env: environment variables; the process's own when not given.
        uid: whose store it is; the effective user's when not given.

    Raises:
        BadValue: a file is not TOML, or a value is not what its key takes; the text names file and key.
        OSError: a file that the environment names cannot be read.
    """
    env = os.environ if env is None else env
    uid = os.geteuid() if uid is None else uid
    warnings = _Warnings()
    merged: dict[str, Any] = {}
    sources = list(_files(env, uid))
    for path in sources:
        _merge(merged, _read(path, warnings))
    return replace(
        _from_tables(merged, env, uid),
        sources=tuple(str(path) for path in sources),
        warnings=tuple(warnings.texts),
    )


# -- which files ---------------------------------------------------------------------------------


def watched_directories(env: Mapping[str, str] | None = None, *, uid: int | None = None) -> list[Path]:
    """Directories in which a file may appear, change or go that :func:`load_options` would read."""
    env = os.environ if env is None else env
    uid = os.geteuid() if uid is None else uid
    named = [Path(env[name]) for name in (_CONF, _OVERRIDE) if env.get(name)]
    found = [path.parent for path in named if path.is_file() or not path.exists()]
    if not env.get(_CONF):
        for directory in _directories(env, uid):
            found += [directory, *(directory / name for name in _subdirectories(uid))]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def fingerprint(env: Mapping[str, str] | None = None, *, uid: int | None = None) -> object:
    """Differs from one taken earlier if :func:`load_options` would read something else."""
    env = os.environ if env is None else env
    uid = os.geteuid() if uid is None else uid
    found = []
    for path in _files(env, uid):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _user_directory(env: Mapping[str, str], uid: int) -> Path | None:
    if env.get("XDG_CONFIG_HOME"):
        return Path(env["XDG_CONFIG_HOME"]) / "containers"
    if uid != 0 and env.get("HOME"):
        return Path(env["HOME"]) / ".config" / "containers"
    return None


def _files(env: Mapping[str, str], uid: int) -> Iterator[Path]:
    """The files to read, in ascending precedence."""
    if env.get(_CONF):
        yield Path(env[_CONF])
    else:
        directories = _directories(env, uid)
        mains = [directory / "storage.conf" for directory in reversed(directories)]
        yield from [path for path in mains if path.is_file()][:1]
        yield from _drop_ins(directories, uid)
    if env.get(_OVERRIDE):
        yield Path(env[_OVERRIDE])


def _directories(env: Mapping[str, str], uid: int) -> list[Path]:
    """The vendor's, the administrator's and the user's directory, in ascending precedence."""
    user = _user_directory(env, uid)
    return [*SYSTEM_DIRECTORIES, *([user] if user else [])]


def _subdirectories(uid: int) -> list[str]:
    """Where drop-in files are, in each of the directories."""
    kind = "rootful" if uid == 0 else "rootless"
    return ["storage.conf.d", f"storage.{kind}.conf.d", f"storage.{kind}.conf.d/{uid}"]


def _drop_ins(directories: list[Path], uid: int) -> list[Path]:
    """Drop-in files sorted by name; one in a later directory replaces its namesake."""
    found: dict[str, Path] = {}
    for directory in directories:
        for subdirectory in _subdirectories(uid):
            found |= {path.name: path for path in (directory / subdirectory).glob("*.conf") if path.is_file()}
    return [found[name] for name in sorted(found)]


# -- reading one file ----------------------------------------------------------------------------


def _read(path: Path, warnings: _Warnings) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        document = _toml(text)
    except ValueError as error:
        raise BadValue(f"{path} is not TOML: {error}") from None
    storage = document.pop("storage", {})
    for key in document:
        warnings.add(path, _line_of(text, "", key), f"unknown table or key {key!r} is ignored")
    checked = _check(path, text, "storage", storage, _STORAGE, warnings)
    options = dict(checked.pop("options", {}))
    drivers = {name: options.pop(name) for name in _DRIVERS if name in options}
    kinds = _OPTIONS | dict.fromkeys(_GENERIC, _TEXT)
    checked["options"] = _check(path, text, "storage.options", options, kinds, warnings)
    for name, table in drivers.items():
        where = f"storage.options.{name}"
        checked[name] = _check(path, text, where, table, dict.fromkeys(table, _TEXT), warnings)
    return checked


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.loads(text)
    return document


def _check(
    path: Path, text: str, where: str, table: Any, kinds: Mapping[str, str], warnings: _Warnings
) -> dict[str, Any]:
    """The keys of ``table`` we know, with values of the right kind."""
    if not isinstance(table, dict):
        raise BadValue(f"{path}: {where} must be a table")
    good = {}
    for key, value in table.items():
        line = _line_of(text, where, key)
        if key in kinds:
            good[key] = _value(path, line, f"{where}.{key}", value, kinds[key])
        elif (where, key) in _UNSUPPORTED:
            warnings.add(path, line, f"{key} in [{where}] is not supported and ignored")
        else:
            warnings.add(path, line, f"unknown key {key!r} in [{where}] is ignored")
    return good


def _value(path: Path, line: int, name: str, value: Any, kind: str) -> Any:
    """``value`` as the type its key takes; booleans and numbers may be quoted, as in the original."""
    if kind is _TEXT and isinstance(value, (str, bool, int)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if kind is _BOOL and (isinstance(value, bool) or value in ("true", "false", "")):
        return value in (True, "true")
    if kind is _NUMBER and str(value).isdigit() and not isinstance(value, bool):
        return int(value)
    if kind is _LIST and isinstance(value, str):
        return [part for part in value.split(",") if part]
    if kind is _LIST and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if kind is _TABLE and isinstance(value, dict):
        return value
    raise BadValue(f"{path}:{line}: {name} must be {kind}, not {value!r}")


def _line_of(text: str, table: str, key: str) -> int:
    """The line a key of a table stands on; 0 if it was written in some other way."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header[1].replace('"', "").replace(" ", "")
            if current == (f"{table}.{key}" if table else key):
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return 0


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Keys of a later file replace those of earlier ones, table by table."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **value}
        else:
            into[key] = value


# -- from tables to options ----------------------------------------------------------------------


def _from_tables(tables: dict[str, Any], env: Mapping[str, str], uid: int) -> StoreOptions:
    options = tables.get("options", {})
    uids = _mapping(options, "remap-uids", "remap-user", "/etc/subuid")
    gids = _mapping(options, "remap-gids", "remap-group", "/etc/subgid")
    check_mappings(IDMappings(uids, gids))
    expand = _expander(env, uid)
    stores = tuple(expand(path) for path in options.get("additionalimagestores", ()))
    driver = env.get("STORAGE_DRIVER") or tables.get("driver", "")
    chosen = tuple(_driver_options(tables, stores))
    if env.get("STORAGE_OPTS"):
        chosen = tuple(part for part in env["STORAGE_OPTS"].split(",") if part)
    return StoreOptions(
        graphroot=_graphroot(tables, env, uid, expand),
        runroot=expand(tables.get("runroot", "") or _default_runroot(env, uid)),
        driver="overlay" if driver == "overlay2" else driver,
        driver_options=chosen,
        driver_priority=tuple(tables.get("driver_priority", ())),
        additional_image_stores=stores,
        image_store=expand(tables.get("imagestore") or options.get("imagestore", "")),
        uidmap=uids,
        gidmap=gids,
        root_auto_userns_user=options.get("root-auto-userns-user", ""),
        auto_userns_min_size=options.get("auto-userns-min-size", 1024) or 1024,
        auto_userns_max_size=options.get("auto-userns-max-size", 65536) or 65536,
        transient_store=tables.get("transient_store", False),
        disable_volatile=options.get("disable-volatile", False),
        pull_options=tuple((key, str(value)) for key, value in options.get("pull_options", {}).items()),
    )


def _driver_options(tables: dict[str, Any], stores: tuple[str, ...]) -> Iterator[str]:
    options: dict[str, str] = {}
    for key, drivers in _GENERIC.items():
        if value := tables.get("options", {}).get(key):
            options |= {f"{driver}.{key}": value for driver in drivers}
    if stores:
        options |= {f"{driver}.imagestore": ",".join(stores) for driver in _OURS}
    if layer_stores := tables.get("options", {}).get("additionallayerstores"):
        options["overlay.additionallayerstore"] = ",".join(layer_stores)
    for driver in _DRIVERS:
        options |= {f"{driver}.{key}": value for key, value in tables.get(driver, {}).items() if value != ""}
    return (f"{key}={value}" for key, value in options.items())


def _mapping(options: dict[str, Any], ranges: str, name: str, path: str) -> tuple[IDMap, ...]:
    """The mapping written out, or made of the subordinate IDs of a name.

    ``remap-user`` is the group's name too where there is no ``remap-group``, and the other way round.
    """
    if options.get(ranges):
        return parse_mappings(options[ranges])
    owner = options.get(name) or options.get("remap-user") or options.get("remap-group")
    if not owner:
        return ()
    found: list[Range] = sorted(subordinate_ids(Path(path), owner))
    if not found:
        raise BadValue(f"{name} = {owner!r}, but {path} has no ranges for that name")
    maps, start = [], 0
    for low, high in found:
        maps.append(IDMap(start, low, high - low))
        start += high - low
    return tuple(maps)


_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def _expander(env: Mapping[str, str], uid: int) -> Callable[[str], str]:
    """Replaces ``$NAME`` and ``${NAME}``; ``$UID`` always is the user's number."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(uid) if name == "UID" else env.get(name, "")

    return lambda text: os.path.realpath(_VARIABLE.sub(value, text)) if text else ""


def _graphroot(tables: dict[str, Any], env: Mapping[str, str], uid: int, expand: Callable[[str], str]) -> str:
    if uid == 0:
        return expand(tables.get("graphroot", "") or _GRAPHROOT)
    data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME", "/"), ".local", "share")
    own = tables.get("rootless_storage_path", "") or tables.get("graphroot", "")
    if not own or own == _GRAPHROOT:  # the vendor's file names root's directory
        own = os.path.join(data, "containers", "storage")
    return expand(own)


def _default_runroot(env: Mapping[str, str], uid: int) -> str:
    if uid == 0:
        return _RUNROOT
    if env.get("XDG_RUNTIME_DIR"):
        return os.path.join(env["XDG_RUNTIME_DIR"], "containers")
    system = Path(f"/run/user/{uid}")
    if system.is_dir() and system.stat().st_uid == uid:
        return str(system / "containers")
    return os.path.join(env.get("TMPDIR") or "/tmp", f"containers-user-{uid}", "containers")
