"""Conformance of rights: owners, modes, access lists and what others may do, as on the real file system."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

import pytest

from tests.support import rootfs_served
from tests.support.posix import Record, T, as_user_in, note_lines
from tests.support.rootfs_samples import GROUP, USER, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.rootfs_served import Served, Work

served = rootfs_served.served_each_way
work = rootfs_served.work

TEAM = 777
DIFFERENCES = {
    r"root chowns \d+-none": "the kernel sends FUSE no chown(2) that names neither user nor group",
    r"(owner|member|other): [a-z]+-(2745|6644)": "whether set-group-ID without group execution, which grants "
    "nothing, survives a write depends on the writer's groups, and the plane writes with its own",
}
"""Labels of what differs, and why."""
BY_REQUEST = {
    r"capability of \w+-map-": "what was written to a map arrives as a write, which takes capabilities away",
}
"""What differs besides where data is not passed through."""
CAPABILITY = bytes.fromhex("0100000200200000" + "00" * 12)
PRIVILEGED = (0o4755, 0o2755, 0o6755, 0o2745, 0o6644, 0o4711)
CHANGES = """
def append(p):
    with open(p, 'ab') as f: f.write(b'x')
def overwrite(p):
    fd = os.open(p, os.O_RDWR); os.pwrite(fd, b'x', 0); os.close(fd)
def shorten(p):
    fd = os.open(p, os.O_RDWR); os.ftruncate(fd, 1); os.close(fd)
def allocate(p):
    fd = os.open(p, os.O_RDWR); os.posix_fallocate(fd, 0, 9000); os.close(fd)
def copy(p):
    fd = os.open(p, os.O_RDWR); os.copy_file_range(fd, fd, 1, 0, 5); os.close(fd)
def map(p):
    fd = os.open(p, os.O_RDWR); m = mmap.mmap(fd, 3); m[:1] = b'm'; m.flush(); m.close(); os.close(fd)
def empty(p): os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))
def truncate(p): os.truncate(p, 2)
def touch(p): os.utime(p)
def read(p): open(p).read()
changes = [append, overwrite, shorten, allocate, copy, map, empty, truncate, touch, read]
"""


def privileges_lost(top: Path, record: Record) -> None:
    """Set-user-ID, set-group-ID and capabilities after every kind of change by anybody."""
    os.chmod(top, 0o777)
    for who in ("owner", "member", "other", "root"):
        code = T + CHANGES + f"for change in changes:\n  for number in {PRIVILEGED}:\n"
        code += f"    p = '{who}-%s-%o' % (change.__name__, number)\n    t(p, change, p); print(p, mode(p))\n"
        for change in (
            "append",
            "overwrite",
            "shorten",
            "allocate",
            "copy",
            "map",
            "empty",
            "truncate",
            "touch",
            "read",
        ):
            for number in PRIVILEGED:
                path = top / f"{who}-{change}-{number:o}"
                path.write_bytes(b"x" * 10)
                os.chown(path, USER if who == "owner" else 0, {"owner": GROUP, "member": TEAM}.get(who, 0))
                os.chmod(path, number | (0o022 if who in ("other", "member") else 0))
                os.setxattr(path, "security.capability", CAPABILITY)
        if who == "root":
            text = run("python3", "-c", "import mmap, os\n" + code, cwd=top).stdout
        else:
            text = as_user_in(top, code, groups=[TEAM] if who == "member" else [])
        for line in text.splitlines():
            record.note(line.split()[0].replace("-", ": ", 1), line)
    for path in sorted(top.iterdir()):
        record.note(f"capability of {path.name}", "security.capability" in os.listxattr(path))


def owners_changed(top: Path, record: Record) -> None:
    os.chmod(top, 0o777)
    for number in PRIVILEGED:
        for label, uid, gid in (("both", 5, 6), ("user", 5, -1), ("group", -1, 6), ("none", -1, -1)):
            path = top / f"{number:o}-{label}"
            path.touch()
            os.chown(path, USER, GROUP)
            os.chmod(path, number)
            os.chown(path, uid, gid)
            record.note(f"root chowns {path.name}", path.stat().st_mode)
        directory = top / f"{number:o}-dir"
        directory.mkdir()
        os.chmod(directory, number)
        os.chown(directory, USER, TEAM)
        record.note(f"root chowns {directory.name}", directory.stat().st_mode)
    code = (
        T
        + f"""
for number in {PRIVILEGED}:
    for gid in ({GROUP}, {TEAM}, 5):
        p = 'o%o-%d' % (number, gid)
        open(p, 'w').close(); os.chmod(p, number)
        t('chown ' + p, os.chown, p, -1, gid); print(mode(p))
        t('chown to itself ' + p, os.chown, p, {USER}, -1); print(mode(p))
        t('chmod ' + p, os.chmod, p, number); print(mode(p))
        t('chown away ' + p, os.chown, p, 5, -1)
"""
    )
    for label, groups in (("alone", []), ("in the team", [TEAM])):
        place = top / label
        place.mkdir()
        os.chmod(place, 0o777)
        note_lines(record, label, as_user_in(place, code, groups=groups))


def shared_directories(top: Path, record: Record) -> None:
    """Set-group-ID directories, by members and others, with several umasks; sticky directories."""
    for name, owner, group, number in (
        ("team", 0, TEAM, 0o2777),
        ("plain", 0, TEAM, 0o777),
        ("sticky", 0, 0, 0o1777),
        ("stickyteam", USER, TEAM, 0o3777),
    ):
        (top / name).mkdir()
        os.chown(top / name, owner, group)
        os.chmod(top / name, number)
        for other in ("theirs", "mine", "dir"):
            (top / name / other).mkdir() if other == "dir" else (top / name / other).touch()
        os.chown(top / name / "mine", USER, GROUP)
    code = (
        T
        + """
for d in ('team', 'plain', 'sticky', 'stickyteam'):
    t(d + ' file', lambda: os.close(os.open(d + '/f', os.O_CREAT | os.O_WRONLY, 0o2777)))
    print(mode(d + '/f'))
    t(d + ' dir', os.mkdir, d + '/d', 0o7777); print(mode(d + '/d'))
    t(d + ' fifo', os.mkfifo, d + '/p', 0o2666); print(mode(d + '/p'))
    t(d + ' node', os.mknod, d + '/n', 0o102755); print(mode(d + '/n'))
    t(d + ' link', os.symlink, 'x', d + '/s'); print(mode(d + '/s'))
    t(d + ' chmod', os.chmod, d + '/f', 0o2755); print(mode(d + '/f'))
    for n in ('theirs', 'mine', 'dir'):
        t(d + ' rename ' + n, os.rename, d + '/' + n, d + '/moved' + n)
        t(d + ' link ' + n, os.link, d + '/' + n, d + '/linked' + n)
        t(d + ' remove ' + n, os.rmdir if n == 'dir' else os.unlink, d + '/' + n)
    for n in ('f', 'd', 'p', 'n', 's'):
        t(d + ' remove ' + n, os.rmdir if n == 'd' else os.unlink, d + '/' + n)
"""
    )
    for umask in (0, 0o022, 0o077):
        note_lines(record, f"alone, umask {umask:o}", as_user_in(top, code, umask=umask))
        note_lines(record, f"in the team, umask {umask:o}", as_user_in(top, code, groups=[TEAM], umask=umask))


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def access_lists(top: Path, record: Record) -> None:
    anyone = 2**32 - 1
    full = _acl((1, 7, anyone), (2, 6, USER), (4, 4, anyone), (8, 1, TEAM), (16, 7, anyone), (32, 0, anyone))
    minimal = _acl((1, 6, anyone), (4, 4, anyone), (32, 4, anyone))
    bad = {
        "empty": b"",
        "short": full[:-3],
        "version": b"\1" + full[1:],
        "tag": _acl((1, 7, anyone), (3, 7, 0), (4, 4, anyone), (32, 0, anyone)),
        "without mask": _acl((1, 7, anyone), (2, 6, 5), (4, 4, anyone), (32, 0, anyone)),
        "without others": _acl((1, 7, anyone), (4, 4, anyone)),
        "permissions": _acl((1, 77, anyone), (4, 4, anyone), (32, 0, anyone)),
    }
    for name in ("f", "d", "p"):
        path = top / name
        {"f": path.touch, "d": path.mkdir, "p": lambda path=path: os.mkfifo(path)}[name]()
        for kind in ("access", "default"):
            attribute = f"system.posix_acl_{kind}"
            for label, value in {"full": full, "minimal": minimal, **bad}.items():
                record(f"set {kind} of {name}: {label}", os.setxattr, path, attribute, value)
                record(f"{kind} of {name}: {label}", os.getxattr, path, attribute)
                record.note(f"mode of {name} after {kind}: {label}", path.stat().st_mode)
            record(f"remove {kind} of {name}", os.removexattr, path, attribute)
            record(f"remove {kind} of {name} again", os.removexattr, path, attribute)
    inherit(top, record, full)
    os.chmod(top, 0o755)
    (top / "secret").write_text("secret")
    for mode in (0o600, 0o640, 0o660, 0o000):
        os.setxattr(top / "secret", "system.posix_acl_access", full)
        os.chmod(top / "secret", mode)
        record(f"list after chmod {mode:o}", os.getxattr, top / "secret", "system.posix_acl_access")
        code = T + "t('read', lambda: open('secret').read()); t('write', lambda: open('secret', 'a').close())"
        note_lines(record, f"user, {mode:o}", as_user_in(top, code))
        note_lines(
            record, f"team, {mode:o}", as_user_in(top, code.replace("secret", "secret"), groups=[TEAM])
        )


def inherit(top: Path, record: Record, full: bytes) -> None:
    """A default list decides in place of the umask."""
    (top / "default").mkdir()
    os.chmod(top / "default", 0o777)
    os.setxattr(top / "default", "system.posix_acl_default", full)
    code = (
        T
        + """
for m in (0o777, 0o666, 0o600, 0o2755):
    n = 'default/%o-' % m
    os.close(os.open(n + 'f', os.O_CREAT | os.O_WRONLY, m)); os.mkdir(n + 'd', m); os.mkfifo(n + 'p', m)
    os.symlink('x', n + 's')
    fd = os.open('default', os.O_TMPFILE | os.O_RDWR, m); print(oct(os.fstat(fd).st_mode)); os.close(fd)
    for k in 'fdps':
        print(k, mode(n + k), sorted(os.listxattr(n + k, follow_symlinks=False)))
        for a in os.listxattr(n + k, follow_symlinks=False): print(os.getxattr(n + k, a))
"""
    )
    note_lines(record, "inherited", as_user_in(top, code, umask=0o077))


def doors(top: Path, record: Record) -> None:
    """Directories one may pass, list, or neither; what needs which right."""
    for mode in (0o000, 0o111, 0o444, 0o555, 0o222, 0o333, 0o777):
        directory = top / f"{mode:o}"
        (directory / "sub").mkdir(parents=True)
        (directory / "f").write_text("f")
        os.chmod(directory / "f", 0o666)
        os.chmod(directory, mode)
    os.chmod(top, 0o755)
    code = (
        T
        + """
for d in ('0', '111', '444', '555', '222', '333', '777'):
    for what, call in (
        ('list', lambda: len(os.listdir(d))), ('stat', lambda: os.stat(d + '/f').st_size),
        ('read', lambda: open(d + '/f').read()), ('make', lambda: os.mkdir(d + '/new')),
        ('unmake', lambda: os.rmdir(d + '/new')), ('none', lambda: os.stat(d + '/none')),
        ('rename', lambda: os.rename(d + '/f', d + '/g')), ('back', lambda: os.rename(d + '/g', d + '/f')),
        ('enter', lambda: os.close(os.open(d + '/sub', os.O_RDONLY))),
        ('link', lambda: os.link(d + '/f', d + '/l')),
        ('chmod', lambda: os.chmod(d, 0o777)), ('utime', lambda: os.utime(d + '/f')),
        ('set time', lambda: os.utime(d + '/f', (1, 1))),
        ('xattr', lambda: os.setxattr(d + '/f', 'user.a', b'')),
        ('dir xattr', lambda: os.setxattr(d, 'user.a', b'')), ('get', lambda: os.getxattr(d, 'user.a')),
        ('trusted', lambda: os.setxattr(d + '/f', 'trusted.a', b'')),
        ('security', lambda: os.setxattr(d + '/f', 'security.a', b'')),
        ('truncate', lambda: os.truncate(d + '/f', 1)), ('chown', lambda: os.chown(d + '/f', -1, -1)),
        ('device', lambda: os.mknod(d + '/dev', 0o20600, 259)),
        ('whiteout', lambda: os.mknod(d + '/w', 0o20000, 0)),
        ('R', lambda: os.access(d, os.R_OK)), ('W', lambda: os.access(d, os.W_OK)),
        ('X', lambda: os.access(d, os.X_OK)),
        ('xf', lambda: os.access(d + '/f', os.X_OK)),
        ('noatime', lambda: os.close(os.open(d + '/f', os.O_RDONLY | os.O_NOATIME))),
    ):
        t(d + ' ' + what, call)
"""
    )
    note_lines(record, "user", as_user_in(top, code))
    note_lines(record, "group", as_user_in(top, code, groups=[0]))


CASES = (privileges_lost, owners_changed, shared_directories, access_lists, doors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_posix_rights_are_those_of_the_real_filesystem(
    served: Served, work: Work, case: Callable[[Path, Record], None]
) -> None:
    differences = DIFFERENCES if served.mount.stats()["passthrough"] else DIFFERENCES | BY_REQUEST
    found = []
    for place in (work.real / "native", work.here / "tree"):
        place.mkdir()
        record = Record()
        case(place, record)
        found.append(record.found)
    native, tree = found
    assert list(native) == list(tree)
    wrong = {label: (value, tree[label]) for label, value in native.items() if tree[label] != value}
    listed = {label for label in wrong if any(re.match(pattern, label) for pattern in differences)}
    assert {label: pair for label, pair in wrong.items() if label not in listed} == {}, "native and tree"
