"""Peer tools (podman, buildah, skopeo, containers-storage) bound to one store."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT = 300
"""Seconds a peer may take; none of the tests needs more than a fraction of it."""


@dataclass(frozen=True, slots=True)
class StoreDirs:
    """Where a store lives."""

    graphroot: Path
    runroot: Path


class ToolFailed(AssertionError):
    """A peer exited with an unexpected code; the text carries its whole output."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A peer's command line with its store options set."""

    prefix: tuple[str, ...]
    env: dict[str, str] = field(repr=False)

    def __call__(
        self, *args: str | Path, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the peer with ``args``; ``ToolFailed`` unless it exits 0 or ``check`` is off."""
        argv = self.argv(*args)
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=TIMEOUT, **stdin)
        if check and done.returncode:
            raise ToolFailed(f"exit {done.returncode}: {' '.join(argv)}\n{done.stdout}{done.stderr}")
        return done

    def argv(self, *args: str | Path) -> list[str]:
        """The whole command line."""
        return [*self.prefix, *map(str, args)]


@dataclass(frozen=True, slots=True)
class ToolBox:
    """Makes tools for one store; configuration files go to ``directory``."""

    dirs: StoreDirs
    driver: str
    directory: Path

    def podman(self) -> Tool:
        """``podman`` able to ``run`` without systemd, cgroups, networks or raised limits."""
        return Tool(("podman", *self._store_flags("--root", "--runroot", "--storage-driver")), self.env())

    def buildah(self) -> Tool:
        """``buildah`` with chroot isolation, which needs no OCI runtime."""
        env = self.env() | {"BUILDAH_ISOLATION": "chroot"}
        return Tool(("buildah", *self._store_flags("--root", "--runroot", "--storage-driver")), env)

    def skopeo(self) -> Tool:
        """``skopeo``, which learns the store from storage.conf: ``containers-storage:NAME`` is ours."""
        return Tool(("skopeo", "--insecure-policy"), self.env())

    def containers_storage(self) -> Tool:
        """The ``containers-storage`` command."""
        return Tool(("containers-storage", *self._store_flags("-g", "-R", "-s")), self.env())

    def _store_flags(self, graphroot: str, runroot: str, driver: str) -> tuple[str, ...]:
        return graphroot, str(self.dirs.graphroot), runroot, str(self.dirs.runroot), driver, self.driver

    def env(self) -> dict[str, str]:
        """The environment that points every peer at this store and no other."""
        self.directory.mkdir(parents=True, exist_ok=True)
        storage, containers = self.directory / "storage.conf", self.directory / "containers.conf"
        storage.write_text(self._storage_conf())
        containers.write_text(self._containers_conf(_runtime(self.directory)))
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
        return inherited | {
            "HOME": str(self.directory),
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def _storage_conf(self) -> str:
        return (
            f'[storage]\ndriver = "{self.driver}"\n'
            f'graphroot = "{self.dirs.graphroot}"\nrunroot = "{self.dirs.runroot}"\n'
        )

    def _containers_conf(self, runtime: Path) -> str:
        graphroot, runroot = self.dirs.graphroot, self.dirs.runroot
        return f"""\
[containers]
cgroups = "disabled"
cgroupns = "host"
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
default_sysctls = []

[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
static_dir = "{graphroot}/libpod"
volume_path = "{graphroot}/volumes"
tmp_dir = "{runroot}/libpod"
image_default_transport = "containers-storage:"

[engine.runtimes]
crun = ["{runtime}"]

[network]
network_config_dir = "{runroot}/net"
"""


def _runtime(directory: Path) -> Path:
    """A path of crun that works here.

    crun 1.8 refuses a hybrid cgroup hierarchy whose v2 half has controllers, even with cgroups off. There
    the runtime is a script that hides the v2 half from crun alone, in a mount namespace of its own. Its name
    must be ``crun``: podman knows by name which runtimes do without cgroups.
    """
    real = Path(shutil.which("crun") or "/usr/bin/crun")
    controllers = Path("/sys/fs/cgroup/unified/cgroup.controllers")
    if not controllers.exists() or not controllers.read_text().strip():
        return real
    script = directory / "crun"
    hide = f'umount --lazy /sys/fs/cgroup/unified; exec {real} "$@"'
    script.write_text(f"#!/bin/sh\nexec unshare --mount --propagation slave sh -c '{hide}' crun \"$@\"\n")
    script.chmod(0o755)
    return script
