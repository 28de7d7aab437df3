"""fsd's own numbers: ``fsd.toml`` beside storage.conf, and what is in force.

Every key is optional. Times are seconds or texts such as ``90s``, ``15m``, ``24h``, ``7d``; fractions are
numbers from 0 to 1. Which file: ``FSD_CONF``, else the directory of the storage.conf in use, else
``/etc/containers/fsd.toml`` (for root) or ``~/.config/containers/fsd.toml``.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fsd.burst_policy import BurstPolicy
from store.errors import BadValue
from store.retention import Policy
from store.trash import TrashPolicy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from store.config import StoreOptions

NAME = "fsd.toml"
ON_WRITE = ("snapshot", "none")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerSettings:
    """The on-change timer; ``interval`` seconds between two of its snapshots of one container, 0 is off."""

    interval: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundSettings:
    """How often a mount does what nobody asked for, in seconds; 0 is never.

    Attributes:
        expire: snapshots and trash go, as far as their own sections say.
        timer: it is looked whether the timer's snapshot of a container is due.
        reap: content that is provably ours and that nothing names goes, with what is kept for it.
        sizes: what changed is measured again, for half a second at most.
    """

    expire: float = 60.0
    timer: float = 300.0
    reap: float = 3600.0
    sizes: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """How real trees are served.

    Attributes:
        keep_awake: while requests come one after another, a virtual machine's idle processors do not halt:
            much faster, and busier for the host.
    """

    keep_awake: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """What the first write of a burst does in a container where nothing was chosen."""

    containers: str = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, by the section of the file it stands in.

    ``source`` is the file read, ``given`` each ``section.key`` in it; ``str`` gives a file that says
    the same, with where each value comes from.
    """

    bursts: BurstPolicy = field(default_factory=BurstPolicy)
    retention: Policy = field(default_factory=Policy)
    trash: TrashPolicy = field(default_factory=TrashPolicy)
    timer: TimerSettings = field(default_factory=TimerSettings)
    background: BackgroundSettings = field(default_factory=BackgroundSettings)
    on_write: WriteSettings = field(default_factory=WriteSettings)
    plane: PlaneSettings = field(default_factory=PlaneSettings)
    source: str = ""
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def __str__(self) -> str:
        lines = [f"# fsd.toml: {self.source or 'not found'}"]
        for section in map(_dashed, _sections()):
            lines += ["", f"[{section}]"]
            for key, value in _items(getattr(self, section.replace("-", "_"))):
                origin = "fsd.toml" if f"{section}.{key}" in self.given else "built-in"
                lines.append(f"{f'{key} = {_toml(value)}':<32}  # {origin}")
        return "\n".join(lines)


def settings_path(options: StoreOptions, env: Mapping[str, str] = os.environ) -> Path:
    """Where the settings of a store are looked for."""
    if env.get("FSD_CONF"):
        return Path(env["FSD_CONF"])
    if options.sources:
        return Path(options.sources[-1]).parent / NAME
    if os.geteuid() == 0:
        return Path("/etc/containers") / NAME
    home = env.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "containers" / NAME


def load_settings(path: Path) -> Settings:
    """The settings in ``path``, or the built-in ones if there is no such file.

    Raises:
        BadValue: it is no TOML, or a key or value is not one; names file and key. OSError
    """
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except UnicodeDecodeError:
        raise BadValue(f"{path} is not UTF-8 text") from None
    return parse_settings(text, str(path))


def waits_for_a_start(before: Settings, now: Settings) -> tuple[str, ...]:
    """The keys, as ``section.key``, that differ and that a mount cannot change."""
    pairs = {
        "bursts.noise": (before.bursts.noise, now.bursts.noise),
        "plane.keep-awake": (before.plane.keep_awake, now.plane.keep_awake),
    }
    return tuple(key for key, (was, is_) in pairs.items() if was != is_)


def parse_settings(text: str, source: str) -> Settings:
    """The settings a text spells; ``BadValue`` names ``source`` and key."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadValue(f"{source}: {error}") from None
    return _settings(found, source)


def _settings(found: dict[str, Any], source: str) -> Settings:
    settings = Settings(source=source)
    for section, table in found.items():
        attribute = section.replace("-", "_")
        if attribute not in _sections() or not isinstance(table, dict):
            raise BadValue(
                f"{source}: there is no section {section!r}; there are {', '.join(map(_dashed, _sections()))}"
            )
        changed = _changed(getattr(settings, attribute), table, f"{source}: {section}")
        given = settings.given | {f"{section}.{key}" for key in table}
        settings = replace(settings, given=given, **{attribute: changed})
    _check_choice(settings.on_write.containers, ON_WRITE, f"{source}: on-write.containers")
    return settings


def _changed(default: T, table: dict[str, Any], where: str) -> T:
    known = {_dashed(item.name): item.name for item in fields(default)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise BadValue(f"{where}.{key}: there is no such setting; there are {', '.join(known)}")
        changes[known[key]] = _value(getattr(default, known[key]), value, f"{where}.{key}")
    return replace(default, **changes)  # type: ignore[type-var]


def _value(default: Any, value: Any, where: str) -> Any:
    """``value`` as what ``default`` is."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(default, enum.Enum):
        _check_choice(value, tuple(member.value for member in type(default)), where)
        return type(default)(value)
    elif isinstance(default, float):
        return _number(value, where)
    elif isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    elif isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif isinstance(value, str):
        return value
    raise BadValue(f"{where}: {value!r} is not a value like {_toml(default)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, str) and (match := _SPAN.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise BadValue(f"{where}: {value!r} is neither a number nor a time such as 90s, 15m, 24h or 7d")


def _check_choice(value: Any, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise BadValue(f"{where}: {value!r} is none of {', '.join(choices)}")


def _sections() -> list[str]:
    return [item.name for item in fields(Settings) if item.name not in ("source", "given")]


def _items(section: Any) -> Iterator[tuple[str, Any]]:
    return ((_dashed(item.name), getattr(section, item.name)) for item in fields(section))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return _toml(value.value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
