"""Programs that run in a chroot of a tree: what they install, build and store is on the real path as well."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import rootfs_served
from tests.support.rootfs_samples import run
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from tests.support.rootfs_served import Work

served = rootfs_served.served
work = rootfs_served.work

CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
CONTROL = """Package: fsd-test
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: a package of the tests
"""

APT = """
APT::Sandbox::User "root";
Dir::Log::Terminal "";
Dpkg::Use-Pty "0";
DPkg::Options { "--force-not-root,script-chrootless,bad-path"; };
"""
"""Settings for a root without users, devices and services."""


def libraries(program: str) -> list[str]:
    """What a program needs to run."""
    lines = run("ldd", program, check=False).stdout.split()
    return sorted({word for word in lines if word.startswith("/")})


def install_file(top: Path, program: Path) -> None:
    """Copy an executable of this machine, and the libraries it needs, into a root."""
    for path in (os.path.realpath(program), *libraries(os.path.realpath(program))):
        target = top / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def install(top: Path, *programs: str) -> None:
    """Copy programs of this machine, and what they need, into a root."""
    for program in programs:
        found = shutil.which(program)
        if found is None:
            pytest.fail(f"{program} is not installed")
        install_file(top, Path(found))
        link = top / "bin" / program
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(os.path.realpath(found))


def inside(top: Path, *argv: str, check: bool = True) -> str:
    """Run something in a chroot; what it prints."""
    done = subprocess.run(
        [CHROOT, top, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            "PATH": "/bin:/usr/bin:/usr/sbin:/sbin",
            "HOME": "/",
            "LC_ALL": "C",
            "DPKG_MAINTSCRIPT_DEBUG": "",
        },
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def root(work: Work) -> Work:
    """A root with a shell, made through the tree."""
    for name in ("bin", "tmp", "etc", "dev", "proc", "usr/bin"):
        (work.here / name).mkdir(parents=True)
    install(work.here, "dash", "busybox")
    (work.here / "bin/sh").symlink_to("dash")
    for applet in ("ls", "cat", "grep", "sort", "wc", "mv"):
        (work.here / f"bin/{applet}").symlink_to(os.path.realpath(str(shutil.which("busybox"))))
    return work


def test_programs_run_in_a_chroot(root: Work) -> None:
    assert inside(root.here, "sh", "-c", "ls / | wc -l; echo done > /tmp/x; cat /tmp/x").split()[1] == "done"
    assert (root.real / "tmp/x").read_text() == "done\n"


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_sqlite_in_a_chroot_keeps_what_it_was_given(root: Work, journal: str) -> None:
    install(root.here, "sqlite3")
    sql = f"pragma journal_mode={journal}; create table t (n integer primary key, x blob);"
    inside(root.here, "sqlite3", "/tmp/db", sql)
    fill = "insert into t (x) select randomblob(500) from generate_series(1, 500);"
    adders = [
        subprocess.Popen(
            [CHROOT, root.here, "sqlite3", "-cmd", ".timeout 60000", "/tmp/db", fill],
            env={"PATH": "/bin:/usr/bin", "HOME": "/"},
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    assert [adder.communicate(timeout=120)[1] for adder in adders] == [b""] * 3
    found = inside(root.here, "sqlite3", "/tmp/db", "pragma integrity_check; select count(*) from t;").split()
    assert found == ["ok", "1500"]
    assert run("sqlite3", root.real / "tmp/db", "select count(*) from t").stdout.split() == ["1500"]


def test_dpkg_in_a_chroot_installs_upgrades_and_removes(root: Work, tmp_path: Path) -> None:
    install(root.here, "dpkg", "dpkg-deb", "dpkg-query", "dpkg-split", "dpkg-trigger", "tar", "rm", "diff")
    for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log"):
        (root.here / name).mkdir(parents=True)
    for name in ("status", "available"):
        (root.here / "var/lib/dpkg" / name).touch()
    for version in ("1", "2"):
        package = tmp_path / f"p{version}"
        for name in ("DEBIAN", "usr/share/fsd-test", "etc"):
            (package / name).mkdir(parents=True)
        control = CONTROL.replace("Version: 1", f"Version: {version}")
        (package / "DEBIAN/control").write_text(control)
        (package / "DEBIAN/postinst").write_text(f"#!/bin/sh\necho {version} > /tmp/configured\n")
        os.chmod(package / "DEBIAN/postinst", 0o755)
        for number in range(200):
            (package / f"usr/share/fsd-test/{number}").write_text(f"{version} {number}\n")
        (package / "etc/fsd-test").symlink_to("../usr/share/fsd-test/1")
        run("dpkg-deb", "--root-owner-group", "-b", package, root.here / f"tmp/{version}.deb")
        inside(root.here, "dpkg", "--force-not-root,script-chrootless,bad-path", "-i", f"/tmp/{version}.deb")
        assert (root.real / "tmp/configured").read_text() == f"{version}\n"
        assert (root.real / "usr/share/fsd-test/199").read_text() == f"{version} 199\n"
    assert f"fsd-test {2}" in inside(root.here, "dpkg-query", "-W").replace("\t", " ")
    assert inside(root.here, "dpkg", "-V") == ""
    inside(root.here, "dpkg", "--force-not-root,bad-path", "-P", "fsd-test")
    assert not (root.real / "usr/share/fsd-test").exists()


def test_git_clone_status_and_gc_agree_on_both_paths(work: Work) -> None:
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "safe.directory=*")
    run(*git, "init", "-q", work.here / "one")
    for number in range(300):
        (work.here / f"one/{number % 10}").mkdir(exist_ok=True)
        (work.here / f"one/{number % 10}/{number}").write_text(f"{number}\n" * number)
    run(*git, "-C", work.here / "one", "add", "-A")
    run(*git, "-C", work.here / "one", "commit", "-qm", "all")
    run(*git, "clone", "-q", work.here / "one", work.here / "two")
    run(*git, "-C", work.here / "two", "gc", "-q", "--aggressive")
    run(*git, "-C", work.here / "two", "fsck", "--strict")
    for path in (work.here, work.real, work.here):
        assert run(*git, "-C", path / "two", "status", "--porcelain").stdout == ""
    assert snapshot_tree(work.here / "two") == snapshot_tree(work.real / "two")


def test_compileall_writes_what_runs(work: Work) -> None:
    library = Path(os.__file__).parent
    shutil.copytree(library / "json", work.here / "json", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(library / "email", work.here / "email", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "compileall", "-q", work.here)
    found = {p.name for p in (work.real / "json/__pycache__").iterdir()}
    assert len(found) == len(list((work.real / "json").glob("*.py")))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import json; print(json.__cached__)"
    assert str(work.here) in run(sys.executable, "-S", "-c", code, work.here).stdout


def test_apt_in_a_chroot_installs_and_removes_what_depends_on_each_other(root: Work, tmp_path: Path) -> None:
    install(
        root.here, "apt-get", "apt-cache", "dpkg", "dpkg-deb", "dpkg-query", "dpkg-split", "tar", "rm", "diff"
    )
    shutil.copytree("/usr/share/dpkg", root.here / "usr/share/dpkg", dirs_exist_ok=True)
    for method in ("file", "copy", "store"):
        install_file(root.here, Path("/usr/lib/apt/methods") / method)
    for name in ("info", "updates", "triggers"):
        (root.here / "var/lib/dpkg" / name).mkdir(parents=True)
    (root.here / "var/lib/dpkg/status").touch()
    for name in ("lib/apt/lists/partial", "cache/apt/archives/partial", "log/apt"):
        (root.here / "var" / name).mkdir(parents=True)
    for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "repository"):
        (root.here / name).mkdir(parents=True)
    index = []
    for name, more in (("fsd-base", ""), ("fsd-top", "Depends: fsd-base (= 1)\n")):
        package = tmp_path / name
        for place in ("DEBIAN", f"usr/share/{name}"):
            (package / place).mkdir(parents=True)
        control = CONTROL.replace("fsd-test", name) + more
        (package / "DEBIAN/control").write_text(control)
        for number in range(100):
            (package / f"usr/share/{name}/{number}").write_text(f"{name} {number}\n")
        built = root.here / f"repository/{name}.deb"
        run("dpkg-deb", "--root-owner-group", "-b", package, built)
        content = built.read_bytes()
        where = (
            f"Filename: ./{name}.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        index.append(control.strip() + "\n" + where)
    (root.here / "repository/Packages").write_text("\n".join(index))
    (root.here / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/repository ./\n")
    (root.here / "etc/apt/apt.conf").write_text(APT)
    inside(root.here, "apt-get", "update")
    inside(root.here, "apt-get", "-y", "install", "fsd-top")
    assert (root.real / "usr/share/fsd-base/99").read_text() == "fsd-base 99\n"
    assert "Status: install ok installed" in (root.real / "var/lib/dpkg/status").read_text()
    inside(root.here, "apt-get", "-y", "purge", "--autoremove", "fsd-top")
    assert not (root.real / "usr/share/fsd-base").exists()
