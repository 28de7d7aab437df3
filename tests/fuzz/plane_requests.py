"""Requests of the FUSE protocol (fuse(4)): proper ones about what is known, and broken ones.

Most requests are whole and name nodes and handles that answers told of, or that were let go of since: those
get far into the handlers. Others are random words, have bits flipped, or are cut short.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

HEADER: Final = struct.Struct("<IIQQIIIHH")
OURS: Final = 1 << 62
KEPT: Final = 128
"""How many nodes and handles of each kind are remembered."""

FORGET, SETATTR, INTERRUPT, BATCH_FORGET, RELEASE = 2, 4, 36, 42, 18
UNLINK, RENAME = 10, 12
LOOKUP, GETATTR, READDIR, READDIRPLUS, CREATE, TMPFILE = 1, 3, 28, 44, 35, 51
NO_ANSWER: Final = frozenset((FORGET, BATCH_FORGET, INTERRUPT))
NAMES: Final = (*b"a b c d e f s x~ nested \xff\xfe".split(), b"n" * 255)
ODD_NAMES: Final = (b"", b".", b"..", b"../out", b"d/f", b"n" * 256, b"/", b"user.a", b"n" * 4096)
TARGETS: Final = (b"a", b"../out", b"../../out", b"/etc/passwd", b"s", b"t" * 4095, b"")
ATTRIBUTES: Final = (
    b"user.a",
    b"user.b",
    b"trusted.c",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"other.d",
    b"user.",
    b"user." + b"n" * 251,
)
FLAGS: Final = (
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDWR | os.O_SYNC,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_PATH,
    os.O_RDWR | os.O_EXCL | os.O_CREAT,
)
KINDS: Final = (stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFDIR, 0)
SIZES: Final = (0, 1, 100, 4096, 5000, 65536)
IOCTLS: Final = (0x80086601, 0x40086602, 0x801C581F, 0x401C5820, 0x40049409, 0x4020940D, 0x5401)
ACL: Final = struct.pack("<IHHIHHIHHI", 2, 1, 6, 2**32 - 1, 4, 4, 2**32 - 1, 32, 4, 2**32 - 1)


class Known:
    """Node ids and handles as the kernel would know them, and some of those it let go of."""

    def __init__(self, pick: random.Random) -> None:
        self.pick = pick
        self.nodes: list[int] = []
        self.handles: list[int] = []
        self.stale: list[int] = [0, 1, OURS, OURS | 1, 2**64 - 1, OURS | 5 << 40 | 256]
        self.opened: set[int] = set()
        self.met: set[int] = set()

    def add_node(self, node: int) -> None:
        """Remember a node."""
        self.met.add(node)
        if node not in self.nodes:
            self._add(self.nodes, node)

    def add_handle(self, handle: int) -> None:
        """Remember an open file."""
        self.opened.add(handle)
        self._add(self.handles, handle)

    def _add(self, kept: list[int], value: int) -> None:
        if len(kept) < KEPT:
            kept.append(value)
        else:
            at = self.pick.randrange(KEPT)
            self._lose(kept[at])
            kept[at] = value

    def _lose(self, value: int) -> None:
        if len(self.stale) < KEPT:
            self.stale.append(value)
        else:
            self.stale[6 + self.pick.randrange(KEPT - 6)] = value

    def node(self) -> int:
        """A node to ask for."""
        if self.pick.random() < 0.04 or not self.nodes:
            return self.pick.choice(self.stale)
        return self.pick.choice(self.nodes)

    def handle(self) -> int:
        """A file to ask for."""
        if self.pick.random() < 0.06 or not self.handles:
            return self.pick.choice(self.stale)
        return self.pick.choice(self.handles)

    def release(self, handle: int) -> None:
        """It is about to be closed."""
        if handle in self.handles:
            self.handles.remove(handle)
            self._lose(handle)


class Requests:
    """Makes one message after the other."""

    def __init__(self, pick: random.Random, known: Known) -> None:
        self.pick = pick
        self.known = known
        self.unique = 0
        self.under_way: dict[int, tuple[int, bytes]] = {}
        makers = {**self._first(), **self._others()}
        self.makers = {code: make for code, (_, make) in makers.items()}
        self.codes, self.weights = list(makers), [weight for weight, _ in makers.values()]
        self.choices = pick.choices(self.codes, self.weights, k=4096)

    def _first(self) -> dict[int, tuple[float, Callable[[], bytes]]]:
        """By opcode, how often it is chosen and what makes its arguments."""
        pick, known = self.pick, self.known
        return {
            1: (12, self.name),
            2: (1, lambda: struct.pack("<Q", pick.choice((0, 1, 1, 2, 1 << 40)))),
            3: (4, lambda: struct.pack("<IIQ", pick.choice((0, 1)), 0, known.handle())),
            4: (5, self._setattr),
            5: (2, lambda: b""),
            6: (2, lambda: self.name() + pick.choice(TARGETS) + b"\0"),
            8: (2, lambda: struct.pack("<IIII", pick.choice(KINDS) | self.mode(), 0, 0o22, 0) + self.name()),
            9: (3, lambda: struct.pack("<II", self.mode(), 0o22) + self.name()),
            10: (3, self.name),
            11: (2, self.name),
            12: (2, lambda: struct.pack("<Q", known.node()) + self.name() + self.name()),
            13: (2, lambda: struct.pack("<Q", known.node()) + self.name()),
            14: (8, lambda: struct.pack("<II", pick.choice(FLAGS), 0)),
            15: (6, self._read),
            16: (6, self._write),
            17: (1, lambda: b""),
            18: (5, self._release),
            20: (0.1, lambda: struct.pack("<QII", known.handle(), pick.choice((0, 1)), 0)),
            21: (3, self._setxattr),
            22: (3, lambda: struct.pack("<II", pick.choice(SIZES), 0) + self.attribute()),
        }

    def _others(self) -> dict[int, tuple[float, Callable[[], bytes]]]:
        pick, known = self.pick, self.known
        return {
            23: (2, lambda: struct.pack("<II", pick.choice(SIZES), 0)),
            24: (2, self.attribute),
            25: (1, lambda: struct.pack("<QIIQ", known.handle(), 0, 0, 0)),
            26: (0.2, lambda: struct.pack("<IIIIII", 7, 40, 1 << 17, pick.getrandbits(32), 0, 0) + bytes(40)),
            27: (1, lambda: struct.pack("<II", 0, 0)),
            28: (3, self._list),
            29: (1, lambda: struct.pack("<QIIQ", OURS, 0, 0, 0)),
            30: (0.1, lambda: struct.pack("<QII", OURS, pick.choice((0, 1)), 0)),
            35: (6, self._create),
            36: (1, self._interrupt),
            38: (0.1, lambda: b""),
            39: (2, self._ioctl),
            40: (1, lambda: struct.pack("<QQII", known.handle(), 0, 0, 0)),
            42: (1, self._forget_many),
            43: (2, self._fallocate),
            44: (5, self._list),
            45: (4, self._rename),
            46: (2, lambda: struct.pack("<QQII", known.handle(), self.offset(), pick.randrange(7), 0)),
            47: (2, self._copy),
            50: (0.02, lambda: bytes(8)),
            51: (2, self._create),
            52: (2, lambda: struct.pack("<IIQII", pick.randrange(2), 0, known.handle(), 0, 0xFFF)),
        }

    # -- parts -------------------------------------------------------------------------------------

    def name(self) -> bytes:
        """A name and its end."""
        return self.pick.choice(NAMES if self.pick.random() < 0.93 else ODD_NAMES) + b"\0"

    def attribute(self) -> bytes:
        """The name of an extended attribute and its end."""
        return self.pick.choice(ATTRIBUTES) + b"\0"

    def mode(self) -> int:
        """Permissions."""
        return self.pick.choice((0o644, 0o755, 0o7777, 0, 0o2770))

    def offset(self) -> int:
        """A position in a file."""
        if self.pick.random() < 0.05:
            return self.pick.choice((2**63 - 1, 2**63, 2**64 - 1, 1 << 40, self.pick.getrandbits(64)))
        return self.pick.randrange(1 << 17)

    def size(self) -> int:
        """A number of bytes."""
        return self.pick.choice((*SIZES, 1 << 20, 2**32 - 1) if self.pick.random() < 0.02 else SIZES)

    # -- payloads ----------------------------------------------------------------------------------

    def _setattr(self) -> bytes:
        pick, valid = self.pick, self.pick.getrandbits(12)
        size = self.offset()
        if pick.random() < 0.2:
            valid = pick.choice((1, 6, 8, 0x48, 0x30, 0x1B0, 0x408, 0x800))
        return struct.pack(
            "<IIQQQQQQIIIIIIII",
            *(valid, 0, self.known.handle(), size, 0, *(pick.getrandbits(31) for _ in range(3))),
            *(pick.choice((0, 999_999_999, 2**32 - 1)) for _ in range(3)),
            *(self.mode(), 0, pick.choice((0, 1000)), pick.choice((0, 1000)), 0),
        )

    def _read(self) -> bytes:
        return struct.pack("<QQIIQII", self.known.handle(), self.offset(), self.size(), 0, 0, 0, 0)

    def _list(self) -> bytes:
        start = self.pick.choice((0, 0, 0, 2, 5, self.offset()))
        return struct.pack("<QQIIQII", OURS, start, self.pick.choice((4096, 300, self.size())), 0, 0, 0, 0)

    def _write(self) -> bytes:
        data = bytes(self.pick.choice((0, 1, 100, 4096, 70_000)))
        size = len(data) if self.pick.random() < 0.95 else self.size()
        flags = self.pick.choice((0, 1, 4))
        return struct.pack("<QQIIQII", self.known.handle(), self.offset(), size, flags, 0, 0, 0) + data

    def _release(self) -> bytes:
        handle = self.known.handle()
        self.known.release(handle)
        return struct.pack("<QIIQ", handle, 0, 0, 0)

    def _setxattr(self) -> bytes:
        value = self.pick.choice((b"", b"value", ACL, ACL[:5], bytes(5000), bytes(65537)))
        size = len(value) if self.pick.random() < 0.95 else self.size()
        head = struct.pack("<IIII", size, self.pick.choice((0, 0, 1, 2, 7)), self.pick.choice((0, 1)), 0)
        return head + self.attribute() + value

    def _create(self) -> bytes:
        flags = self.pick.choice(FLAGS) | os.O_CREAT
        return struct.pack("<IIII", flags, self.mode(), 0o22, 0) + self.name()

    def _interrupt(self) -> bytes:
        unique = self.unique - 2 * self.pick.randrange(40)
        if self.under_way and self.pick.random() < 0.5:
            unique = next(iter(self.under_way))
        return struct.pack("<Q", max(unique, 0))

    def _ioctl(self) -> bytes:
        size = self.pick.choice((0, 4, 8, 28, 2**32 - 1))
        flags = self.pick.choice((0, 1 << 4))
        words = (self.known.handle(), flags, self.pick.choice(IOCTLS), 0, size, self.pick.choice((0, 4, 28)))
        # Attributes that make files immutable would only end the test early.
        return struct.pack("<QIIQII", *words) + bytes(self.pick.choice((0, 4, 28)))

    def _forget_many(self) -> bytes:
        ones = b"".join(
            struct.pack("<QQ", self.known.node(), self.pick.choice((0, 1, 1, 3)))
            for _ in range(self.pick.randrange(4))
        )
        count = len(ones) // 16 if self.pick.random() < 0.9 else self.pick.getrandbits(32)
        return struct.pack("<II", count, 0) + ones

    def _fallocate(self) -> bytes:
        mode = self.pick.choice((0, 1, 3, 8, 16, 32, 255))
        size = self.size() if self.pick.random() < 0.95 else 2**63
        return struct.pack("<QQQII", self.known.handle(), self.offset(), size, mode, 0)

    def _rename(self) -> bytes:
        flags = self.pick.choice((0, 0, 1, 2, 2, 4, 8, 3))
        return struct.pack("<QII", self.known.node(), flags, 0) + self.name() + self.name()

    def _copy(self) -> bytes:
        known = self.known
        words = (known.handle(), self.offset(), known.node(), known.handle(), self.offset(), self.size(), 0)
        return struct.pack("<QQQQQQQ", *words)

    # -- whole messages ----------------------------------------------------------------------------

    def _words(self) -> bytes:
        """What looks like the arguments of something."""
        pick, known = self.pick, self.known
        words = (known.handle(), known.node(), 0, 1, 4096, pick.getrandbits(64), pick.getrandbits(12))
        raw = b"".join(struct.pack("<Q", pick.choice(words)) for _ in range(pick.randrange(8)))
        names = b"\0".join(pick.choice(NAMES + ODD_NAMES) for _ in range(pick.randrange(4)))
        return raw[: len(raw) - pick.choice((0, 0, 4))] + names + pick.choice((b"", b"\0"))

    def proper(self, code: int, node: int, payload: bytes, uid: int = 0) -> bytes:
        """A message under a unique of its own."""
        self.unique += 2
        size = HEADER.size + len(payload)
        return HEADER.pack(size, code, self.unique, node, uid, uid, os.getpid(), 0, 0) + payload

    def next(self) -> bytes:
        """Any message."""
        pick = self.pick
        kind = pick.random()
        code = self.choices[pick.getrandbits(12)]
        if kind > 0.9:
            code = pick.choice((*range(54), 4096, 2**31, code, code))
        payload = self._words() if kind > 0.9 else self.makers[code]()
        message = self.proper(code, self.known.node(), payload, pick.choice((0, 1000)))
        return self._broken(bytearray(message)) if kind < 0.06 else message

    def _broken(self, message: bytearray) -> bytes:
        """Bits flipped, cut short, longer than said; the unique stays."""
        pick, unique = self.pick, message[8:16]
        how = pick.randrange(4)
        if how == 0:
            message[pick.randrange(len(message))] ^= 1 << pick.randrange(8)
            message[8:16] = unique
        elif how == 1:
            del message[pick.randrange(1, len(message)) :]
        elif how == 2:
            del message[pick.randrange(HEADER.size, len(message) + 1) :]
            message[:4] = struct.pack("<I", len(message))
        else:
            message[:4] = struct.pack("<I", pick.getrandbits(pick.choice((8, 32))))
        return bytes(message)
