"""Mounted views of overlay layers: what is mounted where, put together how, and for how many users."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drivers import selinux
from drivers.errors import NotSupported
from drivers.overlay_features import in_user_namespace, mapped
from drivers.overlay_layers import additional_layer_path
from drivers.overlay_links import LINKS, LayerPlace, linked_layer, lower_directories
from drivers.overlay_mount import Mount, is_mounted, make_private, mount_by_program, mount_overlay, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.base import MountOptions
    from drivers.idmap import IDMappings
    from drivers.overlay_options import OverlayOptions
    from drivers.staging import Staging


@dataclass(slots=True)
class _Held:
    count: int
    ours: bool


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of layers in mount options, short for those of one home: the options must fit a page."""

    home: Path
    views: dict[Path, Path]

    @property
    def base(self) -> Path:
        """The directory short names are relative to."""
        return self.views.get(self.home, self.home)

    def of(self, home: Path, entry: str) -> str:
        return entry if home == self.home else str(self.views.get(home, home) / entry)


class Views:
    """Mounts layers at their mount points, counted per layer; thread-safe.

    Args:
        homes: the driver's own, and then the one in the image store.

    A mount another process made is used as it is. It is left alone when the last user here lets go,
    and unmounted by a release that no use here preceded, because mounting and unmounting may be two
    commands.
    """

    def __init__(self, homes: tuple[Path, ...], options: OverlayOptions, staging: Staging) -> None:
        self._home = homes[0]
        self._own = homes
        self.options = options
        self._staging = staging
        self._held: dict[Path, _Held] = {}
        self._lock = threading.RLock()

    def open(self, place: LayerPlace, target: Path, mount: MountOptions) -> Path:
        """Mount a layer at ``target``, or share the mount that is there; returns ``target``."""
        with self._lock:
            held = self._held.get(target)
            if is_mounted(target):
                if held is None:
                    held = self._held[target] = _Held(0, ours=False)
            else:
                self._keep_home()
                self.mount(place, target, mount)
                held = self._held[target] = _Held(held.count if held else 0, ours=True)
            held.count += 1
            return target

    def _keep_home(self) -> None:
        """Bind the home onto itself again if a peer that ended took that away.

        The next peer would do so, and hide a mount made meanwhile: nobody could unmount or remove it then.
        """
        if not self.options.skip_mount_home and not is_mounted(self._home):
            make_private(self._home)

    def close(self, target: Path) -> None:
        """Let go of a mount; the last one to do so unmounts and removes the mount point."""
        with self._lock:
            held = self._held.get(target)
            if held is not None:
                held.count -= 1
                if held.count:
                    return
                del self._held[target]
                if not held.ours:
                    return
            if is_mounted(target):
                unmount(target)
            with suppress(OSError):
                target.rmdir()

    @contextmanager
    def private(self, place: LayerPlace, mount: MountOptions) -> Iterator[Path]:
        """A mount nobody else sees the path of, for the length of the block."""
        with self._staging.directory() as scratch:
            target = scratch / "merged"
            self.mount(place, target, mount)
            try:
                yield target
            finally:
                unmount(target)

    # -- putting a mount together ------------------------------------------------------------------

    def mount(self, place: LayerPlace, target: Path, mount: MountOptions) -> None:
        """Mount a layer at ``target``, which is made.

        Raises:
            LayerUnknown: a layer below is missing; NotSupported, OSError.
        """
        made = not target.exists()
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with ExitStack() as temporary:
                wanted = self._plan(place, target, mount, temporary)
                if self.options.mount_program:
                    mount_by_program(self.options.mount_program, wanted)
                else:
                    mount_overlay(wanted)
        except BaseException:
            if made:
                with suppress(OSError):
                    target.rmdir()
            raise

    def _plan(self, place: LayerPlace, target: Path, mount: MountOptions, temporary: ExitStack) -> Mount:
        words = (*self.options.mountopt, *mount.options)
        lowers = self._lowers(place)
        names = self._names([place.home, *(home for home, _ in lowers)], mount.mappings, target, temporary)
        own = f"{LINKS}/{place.link()}"
        mine = names.of(place.home, own)
        below = [f"{mine}/../{part.name}" for part in place.rotated()]
        below += [names.of(home, entry) for home, entry in lowers]
        served = additional_layer_path(place) is not None
        if not below:
            # A served layer's diff, and so its link, leads out of the layer's directory.
            below = [names.of(place.home, f"{place.directory.name}/empty") if served else f"{mine}/../empty"]
            _ensure_empty(place)
        plan = Mount(base=names.base, target=target, lowers=(), options=self._words(words, mount))
        if "ro" in words or place.additional or served:
            return replace(plan, lowers=(mine, *below))
        _forget_volatile(place)
        plan = replace(plan, lowers=tuple(below))
        if not mount.mappings:
            return replace(plan, upper=mine, work=f"{mine}/../work")
        if stored_unshifted(place, mount.mappings):
            return replace(plan, upper=mine, work=f"{mine}/../work", owner=mount.mappings.root)
        upper = str(place.home / own)
        return replace(plan, upper=upper, work=f"{upper}/../work")

    def _lowers(self, place: LayerPlace) -> list[tuple[Path, str]]:
        found = []
        for home, entry in lower_directories(place.lower(), self._homes(place), self._own):
            found.append((home, entry))
            parts = linked_layer(home, entry).rotated()
            found += [(home, f"{entry}/../{part.name}") for part in parts]
        return found

    def below(self, place: LayerPlace) -> LayerPlace | None:
        """The layer right below; ``None`` for a base layer."""
        entries = place.lower()
        if not entries:
            return None
        [(home, entry)] = lower_directories(entries[:1], self._homes(place), self._own)
        return replace(linked_layer(home, entry), additional=home != self._home)

    def _homes(self, place: LayerPlace) -> list[Path]:
        return list(dict.fromkeys([place.home, *self.homes()]))

    def lower_paths(self, place: LayerPlace) -> list[Path]:
        """The upper directories of the layers below, nearest first."""
        return [(home / entry).resolve() for home, entry in self._lowers(place)]

    def homes(self) -> list[Path]:
        """Where layers may be: the driver's own homes, then those of the additional image stores."""
        return [*self._own, *(store / "overlay" for store in self.options.image_stores)]

    def _names(self, homes: list[Path], mappings: IDMappings, target: Path, temporary: ExitStack) -> _Names:
        """How to name the layers of each home: in place, or in a view of the home with shifted IDs.

        Views are needed while mounting only: an overlay holds on to its layers by itself.

        Args:
            homes: one for every layer of the mount.
        """
        base = max(homes, key=homes.count)
        if not mappings:
            return _Names(base, {})
        if self.options.mount_program:
            raise NotSupported("layers are mounted by overlay.mount_program, which shifts no IDs here")
        directory, views = target.parent / "mapped", {}
        temporary.callback(_remove_directory, directory)
        for number, home in enumerate(dict.fromkeys([self._home, *homes])):
            view = directory / str(number)
            views[home] = temporary.enter_context(mapped(home, mappings, view))
        return _Names(base, views)

    def _words(self, words: tuple[str, ...], mount: MountOptions) -> tuple[str, ...]:
        extra = []
        if mount.mount_label and selinux.enabled():
            extra.append(f'context="{mount.mount_label}"')
        if self.options.mount_program:
            if self.options.force_mask is not None:
                extra.append("xattr_permissions=2")
        elif in_user_namespace():
            extra.append("userxattr")
        return (*words, *extra)


def stored_unshifted(place: LayerPlace, mappings: IDMappings) -> bool:
    """Whether a layer's files carry container IDs on disk, not the host IDs they are mapped to.

    A layer made for a mapping has a root directory owned by one of its host IDs.
    """
    status = place.diff.stat()
    try:
        mappings.to_container(status.st_uid, status.st_gid)
    except ValueError:
        return True
    return False


def _ensure_empty(place: LayerPlace) -> None:
    """Make the lower directory of a base layer where the tool that made the layer made none."""
    with suppress(FileExistsError):
        (place.directory / "empty").mkdir(mode=0o700)


def _forget_volatile(place: LayerPlace) -> None:
    """Remove the mark by which the kernel refuses to mount again what was mounted ``volatile``.

    It is there to make users think about a crash; a container's layer is used again regardless.
    """
    shutil.rmtree(place.directory / "work" / "work" / "incompat" / "volatile", ignore_errors=True)


def _remove_directory(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
