"""The send stream parser against real streams of both versions, and against damaged ones."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import _send, btrfs_ioctl
from drivers.btrfs_names import Namespace
from drivers.btrfs_send import (
    MAGIC,
    Attribute,
    Command,
    Kind,
    MalformedStream,
    read_commands,
    sent_commands,
)
from tests.support import edits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CRC32C_OF_123456789 = 0xE3069283


def command(kind: int, *values: tuple[int, bytes], version: int = 1) -> bytes:
    """One framed command with a sound checksum."""
    data = b""
    for attribute, value in values:
        if version > 1 and attribute == Attribute.DATA:
            data += struct.pack("<H", attribute) + value
        else:
            data += struct.pack("<HH", attribute, len(value)) + value
    bare = struct.pack("<IHI", len(data), kind, 0) + data
    crc = _send.lib.send_crc(bare, len(bare))
    return struct.pack("<IHI", len(data), kind, crc) + data


def stream(*commands: bytes, version: int = 1, end: bool = True) -> io.BytesIO:
    tail = command(Kind.END) if end else b""
    return io.BytesIO(struct.pack("<13sI", MAGIC, version) + b"".join(commands) + tail)


def parse(source: io.BytesIO) -> list[Command]:
    return list(read_commands(source))


def test_checksum_is_castagnoli_started_at_zero() -> None:
    """A slow independent sum over a header with zeros in the checksum's place."""
    data = struct.pack("<IHI", 9, 1, 0) + b"123456789"

    def crc(seed: int, text: bytes) -> int:
        for byte in text:
            seed ^= byte
            for _ in range(8):
                seed = (seed >> 1) ^ (0x82F63B78 if seed & 1 else 0)
        return seed

    assert crc(0xFFFFFFFF, b"123456789") ^ 0xFFFFFFFF == CRC32C_OF_123456789
    assert _send.lib.send_crc(data, len(data)) == crc(0, data)


def test_every_known_command_and_attribute_is_read() -> None:
    values = [(attribute, bytes([attribute])) for attribute in Attribute if attribute != Attribute.DATA]
    found = parse(stream(*(command(kind, *values) for kind in Kind if kind != Kind.END), version=3))
    assert [item.kind for item in found] == [kind for kind in Kind if kind != Kind.END]
    assert all(item.number(attribute) == attribute for item in found for attribute, _ in values)


@pytest.mark.parametrize("version", [1, 2])
def test_data_attribute_is_read_by_its_version(version: int) -> None:
    long = b"x" * (70_000 if version > 1 else 60_000)
    given_values = (Attribute.PATH, b"f"), (Attribute.FILE_OFFSET, bytes(8)), (Attribute.DATA, long)
    [found] = parse(stream(command(Kind.WRITE, *given_values, version=version), version=version))
    assert (found.path(), found.value(Attribute.DATA)) == (b"f", long)


def test_command_newer_than_known_is_passed_on() -> None:
    [found] = parse(stream(command(4711, (Attribute.PATH, b"f")), version=3))
    assert (found.kind, found.name, found.path()) == (4711, "4711", b"f")


def test_times_are_nanoseconds_also_before_1970() -> None:
    raw = struct.pack("<qI", -2, 5)
    [found] = parse(stream(command(Kind.UTIMES, (Attribute.PATH, b"f"), (Attribute.MTIME, raw))))
    assert found.time(Attribute.MTIME) == -2 * 10**9 + 5
    with pytest.raises(MalformedStream, match="no ATIME"):
        found.time(Attribute.ATIME)


SOUND = stream(
    command(Kind.MKFILE, (Attribute.PATH, b"o257-8-0"), (Attribute.INO, bytes(8))),
    command(Kind.RENAME, (Attribute.PATH, b"o257-8-0"), (Attribute.PATH_TO, b"file")),
).getvalue()


@pytest.mark.parametrize("length", range(len(SOUND)))
def test_stream_cut_anywhere_is_malformed(length: int) -> None:
    with pytest.raises(MalformedStream):
        parse(io.BytesIO(SOUND[:length]))


@given(st.integers(0, len(SOUND) * 8 - 1))
def test_stream_with_any_bit_flipped_is_malformed(bit: int) -> None:
    damaged = bytearray(SOUND)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        found = parse(io.BytesIO(bytes(damaged)))
    except MalformedStream:
        return
    # Versions 2 and 3 differ in DATA attributes only, and this stream has none.
    assert struct.unpack_from("<I", damaged, 13)[0] in (2, 3)
    assert found == parse(io.BytesIO(SOUND))


@given(st.binary(max_size=300))
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedStream):
        parse(io.BytesIO(struct.pack("<13sI", MAGIC, 1) + data))


def test_impossibly_long_command_is_refused_before_it_is_read() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            head = struct.pack("<13sI", MAGIC, 1) if self.given == size else b""
            return head or struct.pack("<IHI", 2**32 - 1, 3, 0) + bytes(size)

    source = Endless()
    with pytest.raises(MalformedStream, match="impossibly long"):
        list(read_commands(source))  # type: ignore[arg-type]
    assert source.given < 1 << 20


def names_after(*commands: bytes) -> list[bytes]:
    namespace = Namespace()
    namespace.apply(read_commands(stream(*commands)))
    return sorted(namespace.candidates().paths)


def rename(old: bytes, new: bytes) -> bytes:
    return command(Kind.RENAME, (Attribute.PATH, old), (Attribute.PATH_TO, new))


def on(kind: Kind, path: bytes, **others: bytes) -> bytes:
    return command(kind, (Attribute.PATH, path), *((Attribute[k], v) for k, v in others.items()))


def test_names_of_a_swap_are_both_candidates_and_the_orphan_is_harmless() -> None:
    swap = rename(b"a", b"o257-8-0"), rename(b"b", b"a"), rename(b"o257-8-0", b"b")
    assert names_after(*swap) == [b"/a", b"/b", b"/o257-8-0"]


def test_name_moved_away_and_back_is_not_a_candidate() -> None:
    assert names_after(rename(b"a", b"x"), rename(b"x", b"a")) == [b"/x"]


def test_touched_file_in_a_moved_directory_is_found_at_its_new_place() -> None:
    assert names_after(on(Kind.TRUNCATE, b"a/b/f"), rename(b"a", b"c"))[-1] == b"/c/b/f"


def test_link_of_a_new_file_makes_both_names_candidates() -> None:
    made = on(Kind.MKFILE, b"a"), on(Kind.LINK, b"d/b", PATH_LINK=b"a"), on(Kind.UNLINK, b"a")
    assert names_after(*made) == [b"/a", b"/d/b"]


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.END, Kind.SUBVOL, Kind.SNAPSHOT)])
def test_every_command_makes_its_path_a_candidate(kind: Kind) -> None:
    others = {"PATH_TO": b"z", "PATH_LINK": b"y"}
    assert b"/a" in names_after(on(kind, b"a", **others))


@pytest.mark.parametrize(
    "wrong",
    [
        (on(Kind.UNLINK, b"a"), on(Kind.CHMOD, b"a")),
        (on(Kind.MKDIR, b"a"), on(Kind.CHMOD, b"a/b")),
        (command(Kind.CHMOD),),
    ],
)
def test_stream_that_contradicts_itself_is_malformed(wrong: Iterable[bytes]) -> None:
    with pytest.raises(MalformedStream):
        names_after(*wrong)


@pytest.fixture
def pair(btrfs_dir: Path) -> tuple[Path, Path]:
    """Read-only copies of a tree before and after edits of many kinds."""
    btrfs_ioctl.create_subvolume(btrfs_dir, "live")
    live = btrfs_dir / "live"
    edits.apply_script(live, edits.START)
    btrfs_ioctl.snapshot(live, btrfs_dir, "old", read_only=True)
    index = edits.PATHS.index
    edits.apply_script(
        live,
        [
            ("rename", index("a"), index("c"), 0),
            ("append", index("c/a"), 0, 3),
            ("chmod", index("c/b"), 0, 2),
            ("set xattr", index("b/a/a"), 0, 4),
            ("fallocate", index("b/a/b"), 0, 2),
            ("clone", index("b/a/b"), index("a"), 0),
            ("mkdir", index("b/b/a"), 0, 0),
            ("remove", index("b/c"), 0, 0),
        ],
    )
    btrfs_ioctl.snapshot(live, btrfs_dir, "new", read_only=True)
    return btrfs_dir / "new", btrfs_dir / "old"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("no_file_data", [True, False])
def test_real_stream_has_the_names_btrfs_receive_dumps(
    pair: tuple[Path, Path], tmp_path: Path, version: int, no_file_data: bool
) -> None:
    if version > 1 and not btrfs_ioctl.HAVE_SEND_VERSION:
        pytest.skip("built against headers without send versions")
    new, old = pair
    parent = btrfs_ioctl.subvolume_id(old)
    with sent_commands(new, parent, version=version, no_file_data=no_file_data) as commands:
        found = list(commands)
    with open(tmp_path / "stream", "wb") as file:
        btrfs_ioctl.send(new, file.fileno(), parent_id=parent, no_file_data=no_file_data, version=version)
    dump = subprocess.run(
        ["btrfs", "receive", "--dump", "-f", tmp_path / "stream"], check=True, capture_output=True, text=True
    ).stdout
    assert [item.name.lower() for item in found] == [line.split()[0] for line in dump.splitlines()]
    assert {Kind.RENAME, Kind.SET_XATTR, Kind.CHMOD, Kind.UTIMES} <= {item.kind for item in found}


def test_send_left_early_stops_and_leaves_no_thread_or_descriptor(pair: tuple[Path, Path]) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with sent_commands(pair[0], 0, no_file_data=False) as commands:
            next(commands)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_send_of_a_writable_subvolume_is_refused_with_errno(btrfs_dir: Path) -> None:
    btrfs_ioctl.create_subvolume(btrfs_dir, "s")
    with pytest.raises(btrfs_ioctl.BtrfsError, match="SEND"), sent_commands(btrfs_dir / "s", 0) as commands:
        list(commands)
