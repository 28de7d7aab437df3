"""How long applying a layer's archive and giving it back take beside tar and containers-storage.

Run with ``python -m tests.bench.bench_archive``. ``FSD_BENCH_FILES``, ``FSD_BENCH_BYTES`` and
``FSD_BENCH_RUNS`` change the size (54,000 files, 600 MB) and the number of runs (5).

Each run does every contestant once, one after another, so that a busy machine is busy for all of them; the
ratios are medians over the runs of the ratios within one run. *Cold* means a file system that was just
mounted and an archive dropped from the page cache. Times are wall-clock seconds of the operation without
the interpreter's start; memory is the process's peak.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import loops
from tests.support.tools import StoreDirs, ToolBox

FILES = int(os.environ.get("FSD_BENCH_FILES", "54000"))
BYTES = int(os.environ.get("FSD_BENCH_BYTES", "600000000"))
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "5"))
APPLY = """
import json, resource, sys, time
from pathlib import Path
from drivers import tarsplit_file
from drivers.archive import apply_archive
tree, archive, split, compiled = Path(sys.argv[1]), open(sys.argv[2], "rb"), sys.argv[3], sys.argv[4] == "1"
tree.mkdir()
start = time.monotonic()
if split:
    with tarsplit_file.create(split) as lines:
        apply_archive(tree, archive, tar_split=lines, compiled=compiled)
else:
    apply_archive(tree, archive, compiled=compiled)
print(json.dumps([time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
DIFF = """
import json, os, resource, sys, time
from pathlib import Path
from drivers import tarsplit, tarsplit_file
from drivers.tarwriter import open_diff
tree, split = Path(sys.argv[1]), sys.argv[2]
start = time.monotonic()
stream = tarsplit.assemble(tarsplit_file.open_lines(split), tree) if split else open_diff(tree, None)
buffer, total = bytearray(1 << 20), 0
while size := stream.readinto(buffer):
    total += os.write(1, memoryview(buffer)[:size]) if sys.argv[3] else size
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([time.monotonic() - start, peak]), file=sys.stderr)
"""
Result = tuple[float, float]
"""Seconds and MiB."""


def make_archive(path: Path) -> None:
    """Files of log-normal sizes, half random and half text, in directories of twelve."""
    noise = random.Random(1)
    blob = noise.randbytes(1 << 20) + bytes(noise.choices(b"abcdefghij \n", k=1 << 20))
    sizes = [min(int(noise.lognormvariate(7.8, 1.55)), 1 << 20) for _ in range(FILES)]
    scale = BYTES / (sum(sizes) + 512 * FILES)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number, size in enumerate(sizes):
            place = f"usr/lib/pkg{number // 240:03}/sub{number // 12 % 20:02}"
            if number % 12 == 0:
                _add(archive, f"{place}/", tarfile.DIRTYPE)
            at = noise.randrange(1 << 20)
            content = (blob[at:] + blob)[: min(int(size * scale), 1 << 20)]
            _add(archive, f"{place}/file{number % 12:02}.py", tarfile.REGTYPE, content)


def _add(archive: tarfile.TarFile, name: str, kind: bytes, content: bytes = b"") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644, 1_600_000_000
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


class Arena:
    """A btrfs of its own with room for every contestant's tree."""

    def __init__(self, point: Path, archive: Path) -> None:
        self.point = point
        self.archive = archive
        self.tools = ToolBox(StoreDirs(point / "g", point / "r"), "btrfs", point.parent / "bench-conf")
        self.tool = self.tools.containers_storage()

    def clean(self) -> None:
        """Remove what the last run made."""
        self.tool("delete", "a" * 64, check=False)
        for name in ("tar", "ours", "plain", "python"):
            shutil.rmtree(self.point / name, ignore_errors=True)
        (self.archive.parent / "split.gz").unlink(missing_ok=True)
        os.sync()

    def cool(self) -> None:
        """Drop the archive and everything read from the arena from memory."""
        os.sync()
        with open(self.archive, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        loops.run("mount", "-o", "remount", str(self.point))
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as control:
            control.write("3")

    # -- contestants ---------------------------------------------------------------------------------

    def measured(self, *argv: str) -> Result:
        """A peer's wall time and peak memory."""
        start = time.monotonic()
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert not child.returncode, argv
        return time.monotonic() - start, usage.ru_maxrss / 1024

    def tar_in(self) -> Result:
        (self.point / "tar").mkdir()
        return self.measured("tar", "-C", str(self.point / "tar"), "-xf", str(self.archive))

    def import_layer(self) -> Result:
        argv = self.tool.argv("import-layer", "--id", "a" * 64, "-f", self.archive)
        return self.measured("env", *(f"{k}={v}" for k, v in self.tool.env.items()), *argv)

    def ours(self, name: str = "ours", *, split: bool = True, compiled: bool = True) -> Result:
        path = str(self.archive.parent / "split.gz") if split else ""
        return child(APPLY, str(self.point / name), str(self.archive), path, str(int(compiled)))

    def tar_out(self) -> Result:
        return self.measured("sh", "-c", f"tar -C {self.point / 'ours'} -cf - . | cat > /dev/null")

    def reassembled(self) -> Result:
        return child(DIFF, str(self.point / "ours"), str(self.archive.parent / "split.gz"), "1", piped=True)

    def fresh(self) -> Result:
        return child(DIFF, str(self.point / "ours"), "", "1", piped=True)


def child(script: str, *args: str, piped: bool = False) -> Result:
    """Run a script that prints its own measure; with ``piped`` its output goes through ``cat``."""
    argv = [sys.executable, "-c", script, *args]
    if not piped:
        done = subprocess.run(argv, capture_output=True, check=True)
        return tuple(json.loads(done.stdout))  # type: ignore[return-value]
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as sink:
        assert sink.stdin is not None
        done = subprocess.run(argv, stdout=sink.stdin, stderr=subprocess.PIPE, check=True)
        sink.stdin.close()
    return tuple(json.loads(done.stderr))  # type: ignore[return-value]


def compare(arena: Arena, title: str, contestants: dict[str, Callable[[], Result]], *, cold: bool) -> None:
    """One table: the first contestant is what the others are measured against."""
    rows: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(RUNS):
        if "tar -xf" in contestants:
            arena.clean()
        for name, run in contestants.items():
            if cold:
                arena.cool()
            rows[name].append(run())
    against = next(iter(rows))
    print(f"\n{title}, {'cold' if cold else 'warm'}: seconds, ratio to {against}, MiB")
    for name, results in rows.items():
        ratio = statistics.median(r[0] / a[0] for r, a in zip(results, rows[against], strict=True))
        seconds = statistics.median(r[0] for r in results)
        print(f"  {name:34} {seconds:7.2f} {ratio:7.2f} {max(r[1] for r in results):7.0f}", flush=True)


def main() -> None:
    """Print the tables."""
    home = loops.new_run()
    archive = home / "layer.tar"
    make_archive(archive)
    print(f"{FILES} files, {archive.stat().st_size / 1e6:.0f} MB, {RUNS} runs, {os.cpu_count()} processors")
    try:
        with loops.loop_mount(home, "bench", mkfs=("mkfs.btrfs", "-q"), size=24 << 30) as point:
            arena = Arena(point, archive)
            applying: dict[str, Callable[[], Result]] = {
                "tar -xf": arena.tar_in,
                "fsd": arena.ours,
                "containers-storage import-layer": arena.import_layer,
            }
            giving: dict[str, Callable[[], Result]] = {
                "tar -cf": arena.tar_out,
                "fsd, tar-split": arena.reassembled,
                "fsd, fresh": arena.fresh,
            }
            for cold in (False, True):
                compare(arena, "apply", applying, cold=cold)
                compare(arena, "diff", giving, cold=cold)
            arena.clean()
            ways: dict[str, Callable[[], Result]] = {
                "tar -xf": arena.tar_in,
                "compiled loop, no tar-split": lambda: arena.ours("plain", split=False),
                "compiled loop": arena.ours,
                "Python, no tar-split": lambda: arena.ours("python", split=False, compiled=False),
            }
            compare(arena, "what each part costs", ways, cold=False)
            arena.clean()
    finally:
        loops.remove_run(home)


if __name__ == "__main__":
    main()
