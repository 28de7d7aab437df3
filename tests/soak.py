"""Everything at work on one store at once: podman twice, buildah, fsd twice, and the daemon.

    python -m tests.soak [SECONDS]

Each worker makes, changes and removes what is its own, over images all share. Afterwards nothing may have
failed, ``check`` must find nothing, and podman must still list, inspect and measure the store.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from store.config import StoreOptions
from store.store import Store
from tests.support import loops
from tests.support.daemon import fsd, running
from tests.support.rootfs import build_rootfs_tar
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Daemon

IMAGE = "localhost/soak:latest"
GIB = 1 << 30


class Soak:
    """Workers in threads, each driving processes, until the time is over or one of them fails."""

    def __init__(self, dirs: StoreDirs, home: Path, seconds: float) -> None:
        self.dirs = dirs
        self.home = home
        self.ends = time.monotonic() + seconds
        box = ToolBox(dirs, "btrfs", home / "conf")
        self.podman, self.buildah = box.podman(), box.buildah()
        self.rounds: Counter[str] = Counter()
        self.failures: list[str] = []

    def work(self, name: str, once: Callable[[str], None]) -> None:
        """Repeat one worker's round."""
        while time.monotonic() < self.ends and not self.failures:
            try:
                once(f"{name}-{self.rounds[name]}")
            except Exception:
                self.failures.append(f"{name}, round {self.rounds[name]}:\n{traceback.format_exc()}")
            self.rounds[name] += 1

    def run_container(self, name: str) -> None:
        """podman runs a container, commits it and removes both.

        What is committed differs from round to round: two images of equal content share their layer, and
        then podman's removal of the one can take it away while podman makes the other.
        """
        self.podman("run", "--name", name, IMAGE, "/bin/sh", "-c", f"echo {name} > /made")
        self.podman("inspect", name)
        self.podman("commit", "-q", name, f"localhost/{name}:latest")
        self.podman("rm", name)
        self.podman("rmi", f"localhost/{name}:latest")

    def build(self, name: str) -> None:
        """buildah makes an image of a changed working container and removes both."""
        made = self.buildah("from", "--pull-never", "--name", name, IMAGE).stdout.strip()
        new = self.home / name
        new.write_text(name)
        self.buildah("copy", made, str(new), "/made")
        new.unlink()
        self.buildah("commit", "-q", made, f"localhost/{name}:latest")
        self.buildah("rm", made)
        self.buildah("rmi", f"localhost/{name}:latest")

    def use_fsd(self, name: str) -> None:
        """fsd makes a container, takes a snapshot of it, goes back to it and removes the container."""
        fsd(self.dirs, "create", name, IMAGE)
        fsd(self.dirs, "snapshot", name, "first")
        fsd(self.dirs, "rollback", name, "first")
        fsd(self.dirs, "-s", "btrfs", "set-metadata", "-m", name, name)
        fsd(self.dirs, "-s", "btrfs", "delete-container", name)

    def use_tree(self, daemon: Daemon, name: str) -> None:
        """The mounted tree makes a container from the image, writes to it and removes it."""
        path = daemon / f"containers/{name}"
        path.mkdir()
        (path / "from").write_text(f"{IMAGE}\n")
        (path / "rootfs/written").write_text(name)
        assert (path / "rootfs/written").read_text() == name
        path.rmdir()

    def settled(self) -> list[str]:
        """What is wrong with the store once everybody has stopped."""
        wrong = []
        for words in (("system", "df"), ("info",), ("images",), ("ps", "-a"), ("inspect", IMAGE)):
            done = self.podman(*words, check=False)
            if done.returncode:
                wrong.append(f"podman {' '.join(words)}: {done.stderr}")
        options = StoreOptions(
            graphroot=str(self.dirs.graphroot), runroot=str(self.dirs.runroot), driver="btrfs"
        )
        with Store(options) as store:
            wrong += [str(problem) for problem in store.check()]
            wrong += [f"left over: {record.id}" for record in store.containers()]
        return wrong


def run(dirs: StoreDirs, home: Path, seconds: float) -> int:
    """Soak one store; 0 if nothing went wrong."""
    fsd(dirs, "import", build_rootfs_tar(home / "rootfs.tar"), IMAGE)
    with running(dirs, home / "mnt", quiet=False) as daemon:
        soak = Soak(dirs, home, seconds)
        workers: dict[str, Callable[[str], None]] = {
            "podman-a": soak.run_container,
            "podman-b": soak.run_container,
            "buildah": soak.build,
            "fsd-a": soak.use_fsd,
            "fsd-b": soak.use_fsd,
            "tree": lambda name: soak.use_tree(daemon, name),
        }
        threads = [threading.Thread(target=soak.work, args=worker) for worker in workers.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if soak.failures:
            print(daemon.errors(), file=sys.stderr)
    wrong = soak.failures + soak.settled()
    print("rounds:", ", ".join(f"{name} {count}" for name, count in sorted(soak.rounds.items())))
    print("\n".join(wrong) or "nothing went wrong")
    return int(bool(wrong))


def main() -> int:
    """Soak for as many seconds as the first argument says (600)."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    home = loops.new_run()
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=16 * GIB) as top:
            dirs = StoreDirs(top / "g", top / "r")
            try:
                return run(dirs, top, seconds)
            finally:
                subprocess.run(["umount", "--lazy", str(top / "g/btrfs")], check=False, capture_output=True)
    finally:
        loops.remove_run(home)


if __name__ == "__main__":
    raise SystemExit(main())
