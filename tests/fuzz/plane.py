"""Feed the data plane malformed and random requests, without a kernel.

``python -m tests.fuzz.plane [REQUESTS [SEED]]``. The device descriptor is one end of a socket pair, and so
is pyfuse3's. Requests go out up to 64 at a time (``plane_requests``), and every answer is read and checked
(``plane_answers``): one for each request that has one, of the length the kernel wants. Four exports are
withdrawn, shown again, armed and changed behind the plane's back meanwhile: a gated one, a frozen read-only
one, one without handles, and one of another directory with a subvolume in it. Objects of the synthetic tree
are published, outdated and retracted too. At the end all files are closed and all nodes forgotten, and the
plane must hold nothing any more. Build with ``FSD_SANITIZE=1`` to have every memory access checked.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fsd.plane import ASKED, ENTRY, GUARDED, LISTED, TOLD, UNLOOKED, Kind, Plane
from tests.fuzz import plane_answers as answers
from tests.fuzz import plane_requests as requests
from tests.fuzz.plane_requests import OURS, Known, Requests
from tests.support import loops

IN_FLIGHT = 64
ANSWER_SECONDS = 120
ROOM = 256 << 20
"""For answers that were not read yet: as many as may be under way, each as large as may be."""
NUMBERED = 1000
"""Numbers from here on are given to subvolumes met in an export."""
DENIED_PID = 7
CAP_MKNOD = 27
OBJECTS = 4
"""Published objects; their numbers begin at the multiples of :data:`PLACES`."""
PLACES, TABLE = 256, 3


@dataclass(frozen=True)
class Shown:
    """How one export is shown."""

    number: int
    path: str
    read_only: bool = False
    frozen: bool = False
    gated: bool = False
    by_name: bool = False


EXPORTS = (
    Shown(1, "in", gated=True),
    Shown(2, "in", read_only=True, frozen=True),
    Shown(3, "in", by_name=True),
    Shown(4, "other"),
)


class Fuzzer:
    """One plane, the kernel on its one side and pyfuse3 and policy on the other."""

    def __init__(self, top: Path, seed: int) -> None:
        self.pick = random.Random(seed)
        self.top = top
        self.device, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.device, device):
            end.setsockopt(socket.SOL_SOCKET, 32, ROOM)  # SO_SNDBUFFORCE: the plane's end must never be full
        self.plane = Plane(device.detach(), noise=("*~",), descriptors=16)
        self.python = socket.socket(fileno=int(self.plane.hand_over().rpartition("/")[2]))
        self.known = Known(self.pick)
        self.make = Requests(self.pick, self.known)
        self.buffer = bytearray(1 << 21)
        self.errors: Counter[int] = Counter()
        self.forwarded: set[int] = set()
        self.answered = self.parked = self.notices = 0
        self.roots = [self.show(shown) for shown in EXPORTS]
        self.plane.follow(top, "*.json")
        self.published: set[int] = set()
        self.released: set[int] = set()
        self.publish()
        self.poll = select.poll()
        for fd in (self.device.fileno(), self.python.fileno(), self.plane.events_fd):
            self.poll.register(fd, select.POLLIN)

    # -- the kernel --------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a request, and expect its answer if it has one."""
        whole = len(message) >= requests.HEADER.size
        length, opcode, unique = struct.unpack_from("<IIQ", message) if whole else (0, 0, 0)
        if length == len(message) and opcode not in requests.NO_ANSWER:
            self.make.under_way[unique] = opcode, message
        self.device.send(message)

    def take_answers(self) -> None:
        """Read and check what was answered."""
        while True:
            try:
                size = self.device.recv_into(self.buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            assert size >= answers.ANSWER.size, f"an answer of {size} bytes"
            answer = memoryview(self.buffer)[:size]
            unique = answers.ANSWER.unpack_from(answer)[2]
            if unique:
                self.check(unique, answer)
            else:
                self.notices += 1

    def check(self, unique: int, answer: memoryview) -> None:
        """One answer."""
        opcode, request = self.make.under_way.pop(unique, (0, b""))
        assert request, f"an answer nobody waits for: {bytes(answer[:64])!r}"
        own = unique not in self.forwarded
        wrong = answers.fault(opcode, request, answer) if own else ""
        assert not wrong, f"opcode {opcode}: {wrong}: {request[:200]!r}"
        self.forwarded.discard(unique)
        self.answered += 1
        error = answers.ANSWER.unpack_from(answer)[1]
        self.errors[error] += 1
        if error:
            return
        if own and opcode == requests.RELEASE:
            self.known.opened.discard(answers.handle_of(request))
        body = answer[answers.ANSWER.size :]
        for found in answers.nodes_in(opcode, body) if own or opcode in (1, 9) else ():
            if found & OURS or (own and found):
                self.known.add_node(found)
        if own and (handle := answers.handle_in(opcode, body)):
            self.known.add_handle(handle)

    # -- pyfuse3 -----------------------------------------------------------------------------------

    def be_pyfuse3(self) -> None:
        """Answer what is forwarded with rubbish, sometimes naming an export's root."""
        while True:
            try:
                message = self.python.recv(1 << 21, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            opcode, unique = struct.unpack_from("<IQ", message, 4)
            if opcode in requests.NO_ANSWER or not unique:
                continue
            self.forwarded.add(unique)
            body = struct.pack("<Q", self.pick.choice((*self.roots, self.known.node(), 5)))
            body += bytes(self.pick.choice((0, 56, 72, 120, 160)))
            error = self.pick.choice((0, 0, -2))
            self.python.send(struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    # -- Python ------------------------------------------------------------------------------------

    def show(self, shown: Shown) -> int:
        """Show a directory (again)."""
        made = self.plane.export(
            self.top / shown.path,
            shown.number,
            read_only=shown.read_only,
            frozen=shown.frozen,
            gated=shown.gated,
            by_name=shown.by_name,
            owner=shown.number,
        )
        self.known.add_node(made.node)
        return made.node

    def answer_questions(self) -> None:
        """Let parked requests go or fail them; subvolumes get numbers."""
        for event in self.plane.events():
            if event.kind not in (Kind.PARKED, Kind.NUMBER):
                continue
            self.parked += 1
            if event.kind is Kind.NUMBER:
                self.plane.give_number(event.number, event.handle, NUMBERED + self.pick.randrange(3))
            elif self.pick.random() < 0.3:
                self.plane.disarm(event.number, quiet=9, until=time.time() + 0.1)
            self.plane.resume(event.ticket, self.pick.choice((0, 0, 0, 28)))

    def policy(self) -> None:
        """What may happen at any time."""
        choice = self.pick.randrange(20)
        shown = self.pick.choice(EXPORTS)
        if choice == 0:
            self.plane.unexport(shown.number)
            self.show(shown)
        elif choice in (1, 2):
            self.plane.arm(1)
        elif choice == 3:
            self.plane.deny(DENIED_PID, 0, shown.number)
            self.plane.resume(self.pick.getrandbits(20))
        elif choice == 4:
            self.plane.invalidate_entry(self.known.node(), self.pick.choice((b"a", b"n" * 255)))
        elif choice < 8:
            self.change_behind()
        elif choice < 11:
            self.publish()
        elif choice == 11:
            self.plane.expire(self.pick.choice([*self.published, 1]))
        elif choice == 12:
            self.pick.choice((self.plane.outdate, lambda: _write(self.top / "in/x.json", b"")))()

    def publish(self) -> None:
        """Publish an object in the place of another."""
        number = PLACES * self.pick.randrange(1, OBJECTS + 1)
        self.retract(number)
        entries, text, count = bytearray(), b"".join(requests.NAMES), self.pick.choice((1, 2, 9, 200))
        kinds = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
        parent = 0
        for at in range(count):
            parent = min(self.pick.choice((parent, parent + 1)), max(at - 1, 0))
            kind = self.pick.choice(kinds) if at else stat.S_IFDIR
            flags = self.pick.choice((0, 0, ASKED, UNLOOKED, GUARDED, TOLD)) | self.pick.choice((0, LISTED))
            name = at % (len(text) - 255), self.pick.choice((1, 2, 255))
            target = self.pick.choice(((0, 0), (0, len(text))))
            shown = self.pick.getrandbits(40), self.pick.getrandbits(62), kind | 0o755, 1, at
            entries += ENTRY.pack(
                number + at, *shown, parent, *name, *target, 1000, 1000, self.pick.choice((0, 20)), flags
            )
        guard = self.pick.choice((None, (str(self.top / "in"), 1), (str(self.top / "none"), 7)))
        how = {"owner": 1, "generation": self.plane.generation(), "lasts": self.pick.choice((0.1, 9.0))}
        assert self.plane.publish(entries, text, parent=TABLE, guard=guard, **how)
        self.published.add(number)
        self.released.discard(number)
        self.known.add_node(number)

    def retract(self, number: int) -> None:
        """Take an object back; nothing is released that is published."""
        self.plane.retract(number)
        self.published.discard(number)
        self.released.update(self.plane.released())
        assert not self.released & self.published

    def change_behind(self) -> None:
        """Somebody changes the directory itself."""
        one, two = (self.top / "in" / self.pick.choice(("a", "b", "a/b", "c", "b/a", "c/d")) for _ in "12")
        with contextlib.suppress(OSError):
            choice = self.pick.randrange(5)
            if choice == 0:
                one.rename(two)
            elif choice == 1:
                one.unlink()
            elif choice == 2:
                one.rmdir()
            elif choice == 3:
                one.mkdir()
            else:
                _write(one, b"from elsewhere")

    # -- all together ------------------------------------------------------------------------------

    def turn(self, wait: bool) -> None:
        """Do what there is to do; with ``wait``, wait for it."""
        ready = self.poll.poll(ANSWER_SECONDS * 1000 if wait else 0)
        if wait and not ready:
            waiting = [(code, message[:120]) for code, message in self.make.under_way.values()]
            raise AssertionError(f"no answer within {ANSWER_SECONDS} s: {waiting}")
        self.answer_questions()
        self.be_pyfuse3()
        self.take_answers()

    def settle(self, most: int = 0) -> None:
        """Wait until no more requests than that are under way."""
        while len(self.make.under_way) > most:
            self.turn(wait=True)

    def run(self, count: int) -> None:
        """Send so many requests, and let go of everything."""
        for number in range(count):
            self.send(self.make.next())
            if number % 16 == 0:
                self.turn(wait=False)
            if number % 256 == 0:
                self.policy()
            if len(self.make.under_way) >= IN_FLIGHT:
                self.settle(IN_FLIGHT // 2)
        self.settle()
        self.let_go()

    def let_go(self) -> None:
        """Close every file and forget every node; a proper request still has its answer."""
        for handle in sorted(self.known.opened):
            self.send(
                self.make.proper(requests.RELEASE, self.roots[0], struct.pack("<QIIQ", handle, 0, 0, 0))
            )
            self.settle(IN_FLIGHT)
        for node in sorted(self.known.met):
            self.send(self.make.proper(requests.FORGET, node, struct.pack("<Q", 1 << 40)))
        for root in self.roots * 8:  # several, since threads overtake each other
            self.send(self.make.proper(requests.GETATTR, root, bytes(16)))
        self.settle()
        before = set(self.published) | self.released
        for number in before:
            self.retract(number)
        kept = before - self.released
        assert not kept, f"lookups that were given back are still counted: {kept}"

    def held(self) -> str:
        """What the plane holds that nobody asked it to hold; its threads may need a moment."""
        wanted, end = len(EXPORTS), time.monotonic() + 20
        while (now := self.plane.stats()).nodes != wanted or now.files or now.pinned:
            if time.monotonic() > end:
                return f"{now.nodes} nodes instead of {wanted}, {now.files} files, {now.pinned} pinned"
            time.sleep(0.01)
        return ""

    def stop(self) -> None:
        """Stop the plane and close the other ends."""
        self.plane.stop()
        self.device.close()
        self.python.close()


def prepare(top: Path) -> None:
    """What is exported, and what must stay as it is."""
    for name in ("in/a/b", "in/c", "other/d"):
        (top / name).mkdir(parents=True)
    subprocess.run(["btrfs", "subvolume", "create", top / "other/nested"], check=True, capture_output=True)
    (top / "other/nested/a").write_text("nested")
    (top / "in/f").write_text("f")
    (top / "out").write_text("out")


def _write(path: Path, data: bytes) -> None:
    """Write a file whatever the requests have made of it: a FIFO is not waited for, no link is followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW
    file = os.open(path, flags, 0o644)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def fuzz(top: Path, count: int, seed: int) -> str:
    """Fuzz in an empty directory on btrfs; what was done. Raises ``AssertionError`` for what is wrong."""
    prepare(top)
    before = len(os.listdir("/proc/self/fd"))
    fuzzer = Fuzzer(top, seed)
    fuzzer.run(count)
    held = fuzzer.held()
    stats = fuzzer.plane.stats()
    fuzzer.stop()
    assert not held, held
    assert len(os.listdir("/proc/self/fd")) == before
    assert (top / "out").read_text() == "out"
    assert sorted(os.listdir(top)) == ["in", "other", "out"]
    done = sum(n for error, n in fuzzer.errors.items() if not error)
    return (
        f"seed {seed}: {count} requests, {fuzzer.answered} answers as they must be, {done} of success, "
        f"{fuzzer.parked} parked, {stats.malformed} malformed, {fuzzer.notices} notices"
    )


def main(count: int = 1_000_000, seed: int = 1) -> int:
    """Fuzz on a file system of its own, without devices; 0 when all is well."""
    home = loops.new_run()
    try:
        options = "noatime,nodev,nodatasum"
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=4 << 30, options=options) as top:
            print(fuzz(top, count, seed))
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
