"""The command line on a terminal, and beside a daemon that serves the same store."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time

import pytest

from tests.support.daemon import fsd, fsd_argv, fsd_env, rows, running
from tests.support.features import require
from tests.support.tools import StoreDirs


def on_terminal(dirs, *args):
    """What a command shows on a terminal, and its exit code."""
    leader, follower = pty.openpty()
    argv = fsd_argv(dirs, *args)
    with subprocess.Popen(argv, env=fsd_env(), stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        code = process.wait()
    os.close(leader)
    return shown.decode(), code


def test_tables_have_colour_and_imports_a_bar_on_a_terminal_only(dirs, rootfs_tar):
    shown, code = on_terminal(dirs, "images")
    assert (code, "\x1b[1mNAME" in shown) == (0, True)
    assert "\x1b" not in fsd(dirs, "images").stdout
    shown, code = on_terminal(dirs, "import", rootfs_tar, "localhost/bar:1")
    assert (code, "importing" in shown) == (0, True)
    assert on_terminal(dirs, "export", "small:1")[1] == 2
    fsd(dirs, "untag", "bar:1")


def test_on_write_chosen_beside_a_daemon_is_in_force_soon(dirs, home):
    require("fuse")
    with running(dirs, home / "mnt2") as daemon:
        for attempt in range(
            6
        ):  # each with a container that was never written, since one snapshot is for long
            name = f"quiet{attempt}"
            fsd(dirs, "create", name, "small:1")
            fsd(dirs, "on-write", name, "none")
            time.sleep(1 + attempt)
            (daemon / f"containers/{name}/rootfs/etc/hostname").write_text("x\n")
            if not os.listdir(daemon / f"containers/{name}/snapshots"):
                return
        raise AssertionError("the daemon never noticed the choice")


def test_verbs_beside_a_daemon_show_in_its_tree(dirs, home):
    require("fuse")
    with running(dirs, home / "mnt") as daemon:
        fsd(dirs, "create", "beside", "small:1")
        assert (daemon / "containers/beside/rootfs/etc/hostname").read_text() == "fsd-test\n"
        fsd(dirs, "snapshot", "beside", "s")
        assert os.listdir(daemon / "containers/beside/snapshots") == ["s"]
        fsd(dirs, "pin", "beside")
        assert (daemon / "containers/beside/pinned").exists()
        fsd(dirs, "unpin", "beside")
        (daemon / "containers/beside/rootfs/etc/hostname").write_text("written\n")
        assert fsd(dirs, "cat", "beside:/etc/hostname").stdout == "written\n"
        assert "C /etc/hostname" in fsd(dirs, "changes", "beside").stdout.splitlines()
        assert "fsd_uptime_seconds" in fsd(dirs, "metrics").stdout
        assert rows(dirs, "config")["bursts"]["quiet"] == 60
        checks = {check["check"]: check["result"] for check in rows(dirs, "health")}
        told = [line.split()[1].rstrip(":") for line in (daemon / "control/health").read_text().splitlines()]
        assert set(told) <= checks.keys()
        assert set(checks.values()) <= {"ok", "warn"}
        assert rows(dirs, "rm", "beside")[0]["trash"] in os.listdir(daemon / "trash")
        argv = fsd_argv(dirs, "events", "-n", "1", "--timeout", "60")
        with subprocess.Popen(argv, env=fsd_env(), stdout=subprocess.PIPE) as watching:
            for number in range(100):
                fsd(dirs, "create", f"told{number}")
                if watching.poll() is not None:
                    break
            assert json.loads(watching.stdout.read())["action"] == "create"


@pytest.mark.parametrize(
    ("argv", "label"),
    [
        (["export", "small:1", "-o", "{dir}/tree.tar"], "exporting"),
        (["save", "small:1", "-o", "{dir}/image.tar"], "saving"),
        (["copy", "small:1", "oci:{dir}/layout:1"], "copying"),
        (["copy", "oci:{dir}/other:1", "localhost/by-bar:1"], "copying"),
        (["load", "{dir}/other"], "loading"),
        (["check", "--digests"], "checking"),
        (["prune", "unused-images"], "pruning"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_long_work_has_a_bar_on_a_terminal(rootfs_tar, home, tmp_path, argv, label):
    dirs = StoreDirs(home / tmp_path.name, home / f"{tmp_path.name}.r")
    dirs.graphroot.mkdir()
    fsd(dirs, "import", rootfs_tar, "localhost/small:1")
    if any("other" in word for word in argv):
        fsd(dirs, "copy", "small:1", f"oci:{tmp_path}/other:1")
        fsd(dirs, "rm", "--now", "small:1")
    shown, code = on_terminal(dirs, *(word.format(dir=tmp_path) for word in argv))
    assert (code, label in shown) == (0, True), shown


def test_on_write_of_an_image_opens_drafts(dirs):
    assert rows(dirs, "on-write", "small:1") | {"id": ""} == {
        "kind": "image",
        "id": "",
        "names": ["localhost/small:1"],
        "on-write": "deny",
        "draft": None,
    }
    fsd(dirs, "on-write", "images/small:1", "draft")
    assert fsd(dirs, "on-write", "small:1").stdout == "draft\n"
    done = fsd(dirs, "on-write", "small:1", "snapshot", check=False)
    assert (done.returncode, "deny, draft" in done.stderr) == (125, True)
    fsd(dirs, "create", "no-draft", "small:1")
    done = fsd(dirs, "on-write", "no-draft", "draft", check=False)
    assert (done.returncode, "is for images" in done.stderr) == (125, True)
    fsd(dirs, "on-write", "small:1", "deny")
    assert fsd(dirs, "on-write", "small:1").stdout == "deny\n"


def until(holds):
    """The daemon looks every few seconds for what another process chose; a loaded machine gets its time."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("the daemon never noticed the choice")


def until_written(file, text):
    def written():
        try:
            file.write_text(text)
        except OSError:
            return False
        return True

    until(written)


def test_drafts_chosen_beside_a_daemon_open_in_its_tree_and_end_by_commit(dirs, home):
    require("fuse")
    with running(dirs, home / "mnt3") as daemon:
        image = daemon / "images/localhost/small:1"
        file = image / "rootfs/etc/hostname"
        with pytest.raises(OSError, match="Read-only"):
            file.write_text("x\n")
        fsd(dirs, "on-write", "small:1", "draft")
        assert (image / "on-write").read_text() == "draft\n"
        until_written(file, "drafted\n")
        assert fsd(dirs, "on-write", "small:1").stdout == "draft containers/draft-small-1\n"
        assert fsd(dirs, "cat", "draft-small-1:/etc/hostname").stdout == "drafted\n"
        fsd(dirs, "commit", "draft-small-1", "localhost/drafted:1")
        assert fsd(dirs, "on-write", "small:1").stdout == "draft\n"
        until(lambda: file.read_text() == "fsd-test\n")
        fsd(dirs, "on-write", "small:1", "deny")
    fsd(dirs, "rm", "--now", "draft-small-1")
    fsd(dirs, "untag", "localhost/drafted:1")
