"""Feed the data plane malformed and random requests, without a kernel.

``python -m tests.fuzz.plane [REQUESTS [SEED]]``. The device descriptor is one end of a socket pair, and so
is pyfuse3's. The requests are real ones with bits flipped, cut short, with wild node ids, handles, sizes,
names and times, several in flight at once; some withdraw and show exports meanwhile. It ends well when
the plane answers a proper request at the end, nothing outside the exported directory changed, and the
process is alive: build with ``FSD_SANITIZE=1`` to have every access checked.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

from fsd.plane import OURS, Kind, Plane

HEADER = struct.Struct("<IIQQIIIHH")
OPCODES = [*range(1, 53), 4096, 2**31]
NAMES = (
    b"f",
    b"d",
    b"x",
    b"",
    b".",
    b"..",
    b"../out",
    b"d/f",
    b"n" * 255,
    b"n" * 256,
    b"\xff\xfe",
    b"user.a",
)
IN_FLIGHT = 64
NUMBERS = (1, 2)


class Fuzzer:
    """One plane with two exports, and everything random about it."""

    def __init__(self, top: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.top = top
        self.device, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.device, device):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.plane = Plane(device.detach(), noise=("*~",), descriptors=16)
        self.python = socket.socket(fileno=int(self.plane.hand_over().rpartition("/")[2]))
        self.handles = [0, OURS]
        self.nodes = [1, 2, OURS, 2**64 - 1]
        self.unique = 0
        self.answered = 0
        self.wanted = -1
        self.alive = threading.Event()
        self.export()

    def export(self) -> None:
        """Show both directories (again)."""
        for number, read_only in zip(NUMBERS, (False, True), strict=True):
            shown = self.plane.export(
                self.top / "in", number, read_only=read_only, frozen=read_only, gated=number == 1
            )
            self.nodes.append(shown.node)

    def payload(self) -> bytes:
        """Words that mean something here or there, then perhaps names."""
        pick = self.random
        words = b"".join(
            struct.pack(
                "<Q",
                pick.choice(
                    (
                        pick.choice(self.handles),
                        pick.choice(self.nodes),
                        0,
                        1,
                        4096,
                        pick.getrandbits(64),
                        pick.getrandbits(12),
                    )
                ),
            )
            for _ in range(pick.randrange(8))
        )
        return (
            words[: len(words) - pick.choice((0, 0, 4))]
            + b"\0".join(pick.choice(NAMES) for _ in range(pick.randrange(4)))
            + pick.choice((b"", b"\0"))
        )

    def request(self) -> bytes:
        """One message."""
        pick = self.random
        payload = self.payload()
        self.unique += 2
        size = HEADER.size + len(payload)
        length = size if pick.random() < 0.98 else pick.getrandbits(16)
        node = pick.choice(self.nodes[-64:] if pick.random() < 0.9 else self.nodes)
        head = HEADER.pack(
            length, pick.choice(OPCODES), self.unique, node, pick.choice((0, 1000)), 0, os.getpid(), 0, 0
        )
        message = bytearray(head + payload)
        if pick.random() < 0.02:
            message[pick.randrange(len(message))] ^= 1 << pick.randrange(8)
        if pick.random() < 0.01:
            del message[pick.randrange(1, len(message)) :]
        return bytes(message)

    def learn(self, answer: bytes) -> None:
        """Keep node ids and handles out of answers, to use them later."""
        self.answered += 1
        if struct.unpack_from("<Q", answer, 8)[0] == self.wanted:
            self.alive.set()
        for at in range(16, min(len(answer) - 7, 400), 8):
            word = struct.unpack_from("<Q", answer, at)[0]
            if word & OURS and word >> 63 == 0:
                (self.handles if word >> 40 & 0x1FFFFF == 0 else self.nodes).append(word)
        del self.handles[2:-64], self.nodes[4:-256]

    def receive(self) -> None:
        """Take answers until the device is closed."""
        while True:
            try:
                answer = self.device.recv(1 << 21)
            except OSError:
                return
            if not answer:
                return
            self.learn(answer)

    def answer_python(self) -> None:
        """Be pyfuse3: answer what is forwarded with rubbish, sometimes naming an export's root."""
        pick = random.Random(1)
        while True:
            try:
                message = self.python.recv(1 << 21)
            except OSError:
                return
            if not message:
                return
            if len(message) < 16:
                continue
            unique = struct.unpack_from("<Q", message, 8)[0]
            body = struct.pack("<Q", pick.choice(self.nodes)) + bytes(pick.choice((0, 72, 120, 160)))
            self.python.send(struct.pack("<IiQ", 16 + len(body), pick.choice((0, 0, -2)), unique) + body)

    def policy(self) -> None:
        """Be Python: let parked requests go, withdraw exports, arm and disarm."""
        for event in self.plane.events():
            if event.kind in (Kind.PARKED, Kind.NUMBER):
                self.plane.resume(event.ticket, self.random.choice((0, 0, 28)))
        choice = self.random.randrange(50)
        if choice == 0:
            self.plane.unexport(self.random.choice(NUMBERS))
            self.export()
        elif choice == 1:
            self.plane.arm(1)
        elif choice == 2:
            self.plane.disarm(1, quiet=9, until=2**40)
        elif choice == 3:
            self.plane.deny(os.getpid(), 0, 0)
            self.plane.stats()

    def run(self, requests: int) -> int:
        """Send so many; how many answers came."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self.receive, self.answer_python)]
        for thread in threads:
            thread.start()
        for number in range(requests):
            self.device.send(self.request())
            if number % IN_FLIGHT == 0:
                self.policy()
        self.prove_alive()
        self.plane.stop()
        self.device.close()
        self.python.close()
        return self.answered

    def prove_alive(self) -> None:
        """Everything sent before was read: a proper GETATTR of an export's root is answered."""
        node = self.plane.export(self.top / "in", 1, read_only=False).node
        self.unique += 2
        self.wanted = self.unique
        self.device.send(HEADER.pack(56, 3, self.unique, node, 0, 0, 1, 0, 0) + bytes(16))
        if not self.alive.wait(240):
            raise AssertionError("the plane answers no more")


def main(requests: int = 1_000_000, seed: int = 1) -> int:
    """Fuzz in a directory of its own; 0 when all is well."""
    base = os.environ.get("FSD_FUZZ_DIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="fsd-fuzz-", dir=base) as place:
        top = Path(place)
        (top / "in/d").mkdir(parents=True)
        (top / "in/f").write_text("f")
        (top / "out").write_text("out")
        fuzzer = Fuzzer(top, seed)
        answered = fuzzer.run(requests)
        assert (top / "out").read_text() == "out"
        assert sorted(os.listdir(top)) == ["in", "out"]
    print(f"{requests} requests, {answered} answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
