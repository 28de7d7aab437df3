"""What overlay mounts can do here: tried once, and remembered until the next boot (FORMAT 1.3).

The flag files ``<runroot>/overlay/<feature>-true`` and ``-false`` are shared with containers/storage.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.errors import DriverError
from drivers.idmap import IDMap, IDMappings
from drivers.overlay_mount import Mount, is_mounted, mount_overlay, unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drivers.staging import Staging

_FULL = (0, 0, 2**32 - 1)


def in_user_namespace() -> bool:
    """Whether this process runs in a user namespace other than the initial one."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as lines:
            ranges = [tuple(map(int, line.split())) for line in lines]
    except FileNotFoundError:
        return False
    return ranges != [_FULL]


def xattr_prefix() -> str:
    """Prefix of the attributes overlayfs keeps in upper directories (overlayfs.rst, ``userxattr``)."""
    return "user.overlay." if in_user_namespace() else "trusted.overlay."


@contextmanager
def mapped(source: Path, mappings: IDMappings, target: Path) -> Iterator[Path]:
    """``source`` mounted with shifted IDs at ``target``, which is made, for the length of the block.

    Raises:
        OSError: ``EINVAL`` where the filesystem has no idmapped mounts, ``EPERM`` without privilege.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    namespace = syscalls.open_user_namespace(mappings)
    try:
        tree = syscalls.clone_tree(source)
        try:
            syscalls.set_mount_attributes(tree, userns_fd=namespace)
            syscalls.attach_tree(tree, target)
        finally:
            os.close(tree)
    finally:
        os.close(namespace)
    try:
        yield target
    finally:
        syscalls.umount(target, syscalls.MNT_DETACH)
        target.rmdir()


_FILESYSTEMS = {
    0x9123683E: "btrfs",
    0x58465342: "xfs",
    0xEF53: "extfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x2FC12FC1: "zfs",
    0x6969: "nfs",
    0x65735546: "fuse",
}


class Features:
    """Answers, from flag files where there are any, else by trying in a private directory.

    Args:
        staging: makes directories on the filesystem of the layers.
        flags: the directory of the flag files, ``None`` to keep none.
        mountopt: mount options the driver was configured with; they decide two of the features.
    """

    def __init__(self, staging: Staging, flags: Path | None, mountopt: tuple[str, ...]) -> None:
        self._staging = staging
        self._flags = flags
        self._mountopt = mountopt
        self._known: dict[str, bool] = {}
        self.failure: BaseException | None = None

    def overlay(self) -> bool:
        """Whether an overlay with two lower layers can be mounted; else ``failure`` says why not."""
        return self._answer("overlay", self._try_overlay)

    def metacopy(self) -> bool:
        """Whether a change of attributes copies up attributes alone, under the configured options."""
        return self._answer(f"metacopy({','.join(self._mountopt)})", self._try_metacopy)

    def native_diff(self) -> bool:
        """Whether upper directories hold neither redirects nor copied-up opaque marks."""
        return self._answer(f"native-diff({','.join(self._mountopt)})", self._try_native_diff)

    def idmapped_lower(self) -> bool:
        """Whether a lower directory may be on a mount with shifted IDs."""
        return self._answer("idmapped-lower-dir", self._try_idmapped)

    def _answer(self, feature: str, attempt: Callable[[Path], bool]) -> bool:
        if feature not in self._known:
            recorded = self._recorded(feature)
            if recorded is None:
                with self._staging.directory() as scratch:
                    recorded = self._attempt(attempt, scratch)
                self._record(feature, recorded)
            self._known[feature] = recorded
        return self._known[feature]

    def _attempt(self, attempt: Callable[[Path], bool], scratch: Path) -> bool:
        try:
            return attempt(scratch)
        except (OSError, DriverError) as error:
            self.failure = error
            return False
        finally:
            if is_mounted(scratch / "merged"):
                unmount(scratch / "merged")

    def _recorded(self, feature: str) -> bool | None:
        if self._flags is None:
            return None
        for answer in (True, False):
            if (self._flags / f"{feature}-{str(answer).lower()}").exists():
                return answer
        return None

    def _record(self, feature: str, answer: bool) -> None:
        if self._flags is not None and (answer or feature != "overlay"):
            with suppress(OSError):
                (self._flags / f"{feature}-{str(answer).lower()}").touch(mode=0o644)

    def _try_overlay(self, scratch: Path) -> bool:
        self._mount(scratch, ())
        return True

    def _try_metacopy(self, scratch: Path) -> bool:
        merged = self._mount(scratch, self._mountopt, {"lower1/f": b"content"})
        (merged / "f").chmod(0o700)
        return _has_mark(scratch / "upper" / "f", "metacopy")

    def _try_native_diff(self, scratch: Path) -> bool:
        opaque = scratch / "lower1" / "opaque"
        opaque.mkdir(parents=True)
        os.setxattr(opaque, xattr_prefix() + "opaque", b"y")
        merged = self._mount(scratch, self._mountopt, {"lower1/from/f": b"", "lower2/opaque/f": b""})
        (merged / "opaque").chmod(0o700)
        if _has_mark(scratch / "upper" / "opaque", "opaque"):
            return False
        try:
            (merged / "from").rename(merged / "to")
        except OSError:  # EXDEV: renames of merged directories are not redirected
            return True
        return not _has_mark(scratch / "upper" / "to", "redirect")

    def _try_idmapped(self, scratch: Path) -> bool:
        lower = scratch / "lower1"
        lower.mkdir()
        one = IDMap(0, os.getuid(), 1), IDMap(0, os.getgid(), 1)
        with mapped(lower, IDMappings((one[0],), (one[1],)), scratch / "mapped") as view:
            self._mount(scratch, (), lowers=(view.name, "lower2"))
        return True

    def _mount(
        self,
        scratch: Path,
        options: tuple[str, ...],
        files: dict[str, bytes] | None = None,
        lowers: tuple[str, ...] = ("lower1", "lower2"),
    ) -> Path:
        for name in ("lower1", "lower2", "upper", "work", "merged"):
            (scratch / name).mkdir(exist_ok=True)
        for path, content in (files or {}).items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(content)
        merged = scratch / "merged"
        user = ("userxattr",) if in_user_namespace() else ()
        wanted = Mount(
            base=scratch, target=merged, lowers=lowers, upper="upper", work="work", options=options + user
        )
        mount_overlay(wanted)
        return merged


def _has_mark(path: Path, mark: str) -> bool:
    return xattr_prefix() + mark in os.listxattr(path, follow_symlinks=False)


def filesystem_name(path: Path) -> str:
    """What the file system at ``path`` is called, or its magic number."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        magic = syscalls.statfs_type(fd)
    finally:
        os.close(fd)
    return _FILESYSTEMS.get(magic, f"0x{magic:x}")
