"""``copy`` of the containers-storage command line: files into, out of and between layers.

A path in a layer is resolved inside the layer, as if the layer were the root directory (the original
resolves the links in it on the host). A directory's content goes into the target directory, which keeps its
own attributes; a file becomes the target, unless that is a directory.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from drivers.confine import IN_ROOT
from drivers.idmap import IDMappings
from drivers.syscalls import openat2
from fsd.storage_context import write_all
from fsd.storage_errors import EXPECTED, text_of
from store.errors import LayerUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.storage_context import Run

    Owner = Callable[[os.stat_result], tuple[int, int]]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_MODE_PARENT, _MODE_TARGET = 0o700, 0o755


class Place(NamedTuple):
    """A path below an open root directory, the owners' mapping there, and how errors name it."""

    root: int
    path: str
    mappings: IDMappings
    shown: str


def copy(run: Run) -> int:
    """``copy SOURCE… TARGET``; each may be ``LAYER:PATH``."""
    chown = _chown(run)
    with ExitStack() as stack:
        target = _place(run, run.args[-1], stack)
        for argument in run.args[:-1]:
            source = _place(run, argument, stack)
            try:
                _copy(source, target, chown)
            except EXPECTED as error:
                text = text_of(error, call="stat")
                run.fail(f'error copying "{source.shown}" to "{target.shown}": {text}')
    return 0


def _chown(run: Run) -> tuple[int, int] | None:
    text = run.text("chown")
    if not text:
        return None
    user, colon, group = text.partition(":")
    ids = []
    for what, part in (("UID", user), ("GID", group if colon else user)):
        if not (part.isascii() and part.isdigit() and int(part) < 1 << 32):
            text = f'error "{part}" as a numeric {what}: strconv.ParseUint: parsing "{part}": invalid syntax'
            write_all(2, text.encode())  # no newline, as in the original
            run.fail("")
        ids.append(int(part))
    return ids[0], ids[1]


def _place(run: Run, argument: str, stack: ExitStack) -> Place:
    """Where an argument points; a layer stays mounted until ``stack`` ends."""
    key, colon, path = argument.partition(":")
    if not colon:
        root = os.open("/", _DIRECTORY)
        stack.callback(os.close, root)
        return Place(root, os.path.abspath(argument), IDMappings(), argument)
    try:
        layer = run.store.layer(key)
    except LayerUnknown as error:
        run.fail(f'error finding layer "{key}": {error.original}')
    try:
        mounted = run.store.mount(layer.id, layer.mount_label)
    except EXPECTED as error:
        run.fail(f'error mounting layer "{layer.id}": {text_of(error)}')
    stack.callback(run.store.unmount, layer.id)
    root = os.open(mounted, _DIRECTORY)
    stack.callback(os.close, root)
    return Place(root, os.path.normpath(f"/{path}"), layer.mappings, os.path.join(mounted, path.lstrip("/")))


def _copy(source: Place, target: Place, chown: tuple[int, int] | None) -> None:
    def owner(st: os.stat_result) -> tuple[int, int]:
        if chown is not None:
            return target.mappings.to_host(*chown)
        return target.mappings.to_host(*source.mappings.to_container(st.st_uid, st.st_gid))

    with ExitStack() as stack:
        fd = _open_source(source)
        stack.callback(os.close, fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            into = _make_directories(target, target.path, _MODE_TARGET, chown)
            stack.callback(os.close, into)
            _copy_content(fd, into, owner, _Links(into))
        else:
            parent = _make_directories(target, os.path.dirname(target.path), _MODE_PARENT, None)
            stack.callback(os.close, parent)
            name = os.path.basename(target.path)
            _clear(parent, name)
            _copy_file(fd, parent, name, owner, with_xattrs=False)


def _open_source(place: Place) -> int:
    """Open what is copied, following links inside its root; a special file is never opened for reading."""
    try:
        found = openat2(place.root, place.path, os.O_PATH | os.O_CLOEXEC, resolve=IN_ROOT)
    except OSError as error:
        raise OSError(error.errno, error.strerror, place.shown) from None
    try:
        kind = os.fstat(found).st_mode
        if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            raise OSError(errno.EINVAL, "not a regular file or directory", place.shown)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _make_directories(place: Place, path: str, mode: int, owner: tuple[int, int] | None) -> int:
    """Open a directory, making what is missing of it."""
    made = place.mappings.to_host(*(owner or (0, 0)))
    parts = [part for part in path.split("/") if part]
    fd = os.dup(place.root)
    for number in range(len(parts)):
        relative = "/".join(parts[: number + 1])
        try:
            os.mkdir(parts[number], mode, dir_fd=fd)
            os.chown(parts[number], *made, dir_fd=fd, follow_symlinks=False)
            os.chmod(parts[number], mode, dir_fd=fd)
        except FileExistsError:
            pass
        try:
            deeper = openat2(place.root, relative, _DIRECTORY, resolve=IN_ROOT)
        except NotADirectoryError as error:
            raise OSError(error.errno, error.strerror, f"/{relative}") from None
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _clear(parent: int, name: str) -> None:
    """Remove what is called ``name``; a directory is never replaced by something else."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise OSError(errno.EISDIR, f'cannot overwrite directory "/{name}" with non-directory "/"') from None


class _Links:
    """Where files with several names have been copied to, by what they were copied from."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.paths: dict[tuple[int, int], str] = {}

    def reuse(self, st: os.stat_result, path: str, parent: int) -> bool:
        """Make ``path`` a link to the copy of the same file; false if it is the first of its names."""
        if st.st_nlink < 2:
            return False
        first = self.paths.setdefault((st.st_dev, st.st_ino), path)
        if first == path:
            return False
        name = os.path.basename(path)
        os.link(first, name, src_dir_fd=self.top, dst_dir_fd=parent, follow_symlinks=False)
        return True


def _copy_content(source: int, target: int, owner: Owner, links: _Links, at: str = "") -> None:
    """Copy a directory's entries with their attributes, later names of one file as hard links."""
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        st = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode):
            _copy_directory(source, target, name, st, owner, links, f"{at}{name}/")
        elif not stat.S_ISSOCK(st.st_mode):
            _clear(target, name)
            if not links.reuse(st, f"{at}{name}", target):
                _copy_single(source, target, name, st, owner)


def _copy_directory(
    source: int, target: int, name: str, st: os.stat_result, owner: Owner, links: _Links, at: str
) -> None:
    try:
        os.mkdir(name, _MODE_PARENT, dir_fd=target)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=target)
            os.mkdir(name, _MODE_PARENT, dir_fd=target)
    with ExitStack() as stack:
        inner = os.open(name, _DIRECTORY | _NOFOLLOW, dir_fd=source)
        stack.callback(os.close, inner)
        outer = os.open(name, _DIRECTORY | _NOFOLLOW, dir_fd=target)
        stack.callback(os.close, outer)
        _copy_content(inner, outer, owner, links, at)
        _finish(inner, outer, st, owner, with_xattrs=True)


def _copy_single(source: int, target: int, name: str, st: os.stat_result, owner: Owner) -> None:
    if stat.S_ISREG(st.st_mode):
        fd = os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=source)
        try:
            _copy_file(fd, target, name, owner, with_xattrs=True)
        finally:
            os.close(fd)
        return
    if stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, st.st_mode, st.st_rdev, dir_fd=target)
    os.chown(name, *owner(st), dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=target)
    os.utime(name, ns=(st.st_mtime_ns, st.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, parent: int, name: str, owner: Owner, *, with_xattrs: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
    fd = os.open(name, flags, 0o600, dir_fd=parent)
    with open(fd, "wb") as target, open(source, "rb", closefd=False) as content:
        shutil.copyfileobj(content, target, 1 << 20)
        target.flush()
        _finish(source, fd, os.fstat(source), owner, with_xattrs=with_xattrs)


def _finish(source: int, target: int, st: os.stat_result, owner: Owner, *, with_xattrs: bool) -> None:
    """Owner, mode, attributes and time, in the order in which they do not undo each other."""
    os.fchown(target, *owner(st))
    os.fchmod(target, stat.S_IMODE(st.st_mode))
    if with_xattrs:
        for key in os.listxattr(source):
            if key.startswith("user.") or key == "security.capability":
                os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(st.st_mtime_ns, st.st_mtime_ns))
