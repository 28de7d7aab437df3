"""Our storage command line and containers-storage itself, each on a store of its own, side by side."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from fsd import storage_cli
from tests.support.storage_scripts import IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = tuple[int, str, str]
    Finish = Callable[[], Answer]
    Runner = Callable[[list[str], Path | None, Path], Finish]

ROOT = Path(__file__).parents[2]
for _path in (*ROOT.glob("drivers/*.py"), *ROOT.glob("store/*.py"), *ROOT.glob("fsd/storage_*.py")):
    if "build" not in _path.name:  # what a child of this process would otherwise import again and again
        importlib.import_module(f"{_path.parent.name}.{_path.stem}".removesuffix(".__init__"))
ID = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
LINK = re.compile(r"\b[A-Z0-9]{26}\b")
KNOWN = set(IDS.values())
UNORDERED = ("changes", "exists")
"""Commands whose lines the original prints in random order."""
NOT_COMPARED = re.compile(
    r"mounts|tmp|.*/tmp|.*\.lock|[^/]*|btrfs/(fsd|fsd/older|subvolumes)|vfs/dir|"
    r"overlay/(\.has-mount-program|l/.*|[^/]*/merged|.*/work/work)"
)
"""Locks, and directories that either program makes earlier or later than the other."""


def start_ours(argv: list[str], stdin: Path | None, scratch: Path) -> Finish:
    """Our command line in a child of this process, which has everything imported."""
    out, err = scratch / "out", scratch / "err"
    pid = os.fork()
    if pid == 0:
        code = 70
        with contextlib.suppress(BaseException):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            for fd, path, mode in ((0, stdin or os.devnull, os.O_RDONLY), (1, out, flags), (2, err, flags)):
                os.dup2(os.open(path, mode, 0o600), fd)
            sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            code = storage_cli.main(argv)
        os._exit(code)

    def finish() -> Answer:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, out.read_bytes().decode("latin1"), err.read_bytes().decode("latin1")

    return finish


def start_real(argv: list[str], stdin: Path | None, scratch: Path) -> Finish:
    """The program itself."""
    with open(stdin or os.devnull, "rb") as given:
        pipes = {"stdin": given, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(["containers-storage", *argv], **pipes)

    def finish() -> Answer:
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode("latin1"), err.decode("latin1")

    return finish


class Side:
    """One of the two programs on a store of its own."""

    def __init__(self, runner: Runner, home: Path, driver: str, files: dict[str, str]) -> None:
        self.runner = runner
        self.home = home
        self.driver = driver
        self.files = files
        self.ids: dict[str, str] = {}
        home.mkdir()

    def start(self, line: str) -> Finish:
        """Begin a line of a script; the result waits for exit status, output and complaints, normalised."""
        words = line.format(**IDS, **self.files, home=self.home).split(" ")
        stdin = Path(words.pop(0)[1:]) if words[0].startswith("<") else None
        store = ["-g", str(self.home / "g"), "-R", str(self.home / "r"), "-s", self.driver]
        finish = self.runner([*store, *words], stdin, self.home)

        def finished() -> Answer:
            code, out, err = finish()
            if words[0] in UNORDERED:
                out = in_order(out)
            if words[0] == "diff":
                out = contents(out)
            if words[0] == "status":
                out, err = out.partition(r'"],["Driver Options"')[0], "".join(err.splitlines(True)[:4])
            return code, self.normal(out), "".join(map(self._complaint, err.splitlines(True)))

        return finished

    def normal(self, text: str) -> str:
        """Without what differs between two runs of one program."""
        text = text.replace(str(self.home), "HOME")
        text = TIME.sub("TIME", text)
        return ID.sub(lambda m: self._name(m[0]), text)

    def _complaint(self, line: str) -> str:
        """A line of standard error; IDs that only a log names are given no number."""
        return line if is_log(line) else self.normal(line)

    def _name(self, found: str) -> str:
        if found in KNOWN or found.startswith(("5891b5", "0000b5")):
            return found
        return self.ids.setdefault(found, f"<id {len(self.ids)}>")

    def tables(self) -> dict[str, object]:
        """The JSON files as they are on disk; those that are absent or empty count as empty lists."""
        found = {}
        for kind in ("layers", "images", "containers"):
            path = self.home / f"g/{self.driver}-{kind}/{kind}.json"
            text = path.read_text() if path.exists() else ""
            found[kind] = self.normal(text or "[]")
        mounts = self.home / f"r/{self.driver}-layers/mountpoints.json"
        text = mounts.read_text() if mounts.exists() else ""
        found["mounts"] = [self.normal(json.dumps(mount)) for mount in json.loads(text or "[]")]
        return found

    def tree(self) -> list[str]:
        """Everything below the graphroot: names, types, modes, owners, and contents."""
        return sorted(self._entries())

    def _entries(self) -> Iterator[str]:
        root = self.home / "g"
        for top, directories, files in os.walk(root):
            for name in (*directories, *files):
                path = Path(top, name)
                shown = str(path.relative_to(root))
                if NOT_COMPARED.fullmatch(shown):
                    continue
                st = path.lstat()
                what = f"{LINK.sub('LINK', self.normal(shown))} {st.st_mode:o} {st.st_uid}:{st.st_gid}"
                yield f"{what} {self._content(path, st)}"

    def _content(self, path: Path, st: os.stat_result) -> str:
        if stat.S_ISLNK(st.st_mode):
            return self.normal(os.readlink(path))
        if not stat.S_ISREG(st.st_mode) or path.suffix in (".gz", ".json") or path.name in ("link", "lower"):
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def in_order(text: str) -> str:
    """Lines, or the elements of a JSON list, sorted."""
    if text.startswith("[{"):
        return json.dumps(sorted(json.loads(text), key=json.dumps))
    return "\n".join(sorted(text.splitlines()))


def contents(text: str) -> str:
    """What a tar of the output holds, where it is one; times of whiteouts vary."""
    data = text.encode("latin1")
    if len(data) < 512:
        return text
    with tarfile.open(fileobj=io.BytesIO(data)) as archive, contextlib.suppress(tarfile.ReadError):
        entries = [(m.name, m.type, oct(m.mode), m.uid, m.gid, m.uname, m.size, m.linkname) for m in archive]
        return repr(entries)
    return f"{len(data)} bytes of an archive"


def make_files(home: Path) -> dict[str, str]:
    """Files the scripts work with, by the names they use."""
    text = home / "text"
    text.write_text("hello\n")
    tree = home / "dir"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("one\n")
    (tree / "file").chmod(0o4755)
    (tree / "sub/link").symlink_to("../file")
    os.link(tree / "file", tree / "sub/hard")
    os.utime(tree / "file", (1e9, 1e9))
    with tarfile.open(home / "tar", "w") as archive:
        archive.add(tree, "d")
    with tarfile.open(home / "tgz", "w:gz") as archive:
        (tree / "new").write_text("two\n")
        archive.add(tree / "new", "d/new")
        whiteout = tarfile.TarInfo("d/sub/.wh.link")
        archive.addfile(whiteout)
    with tarfile.open(home / "more", "w") as archive:
        archive.add(tree / "new", "d/more")
    (tree / "new").unlink()
    with tarfile.open(home / "owned", "w") as archive:
        for owner in (0, 4, 5, 3000):
            for name, kind in ((f"file{owner}", tarfile.REGTYPE), (f"dir{owner}", tarfile.DIRTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.mode, member.uid, member.gid = kind, 0o755, owner, owner + 1
                archive.addfile(member)
    return {"dir": str(tree), **{name: str(home / name) for name in ("text", "tar", "tgz", "more", "owned")}}


def both(home: Path, driver: str, files: dict[str, str]) -> tuple[Side, Side]:
    """Our program and the original, each on a store of its own."""
    home.mkdir()
    return Side(start_ours, home / "a", driver, files), Side(start_real, home / "b", driver, files)


def differences(ours: Side, real: Side, script: list[str]) -> list[str]:
    """What the two answered differently, command by command."""
    found = []
    for line in script:
        running = real.start(line), ours.start(line)
        theirs, mine = (finish() for finish in running)
        for what, a, b in zip(("status", "stdout", "stderr"), mine, theirs, strict=True):
            if a != b and not (what == "stderr" and is_log(b)):
                found.append(f"$ {line}\n{what} is  {a!r}\nnot {b!r}")
    return found


def is_log(text: str) -> bool:
    """Whether the original logged something there, in its own words."""
    return text.startswith("time=")


def describe(a, b) -> str:
    """Only what differs between two lists or mappings."""
    if isinstance(a, dict):
        return "; ".join(f"{key} is {a[key]}\nnot {b[key]}" for key in a if a[key] != b[key])
    return f"\nonly ours: {sorted(set(a) - set(b))}\nonly theirs: {sorted(set(b) - set(a))}"
