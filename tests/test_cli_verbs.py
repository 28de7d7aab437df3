"""Every verb of the command line on a real store that podman reads too, mostly in one store for all tests."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from fsd import cli_docs
from fsd.cli_arguments import PRUNED
from fsd.cli_completion import bash, fish, zsh
from fsd.cli_verbs import BY_NAME, VERBS
from fsd.storage_table import BY_NAME as STORAGE_VERBS
from fsd.storage_table import SHARED
from store.prune import Kind
from tests.support.daemon import fsd, fsd_argv, fsd_env, rows
from tests.support.features import require
from tests.support.tools import StoreDirs, ToolBox


def rootfs(dirs, container):
    layer = rows(dirs, "containers", container)[0]["layer"]
    return dirs.graphroot / "btrfs/subvolumes" / layer


# -- the table -------------------------------------------------------------------------------------


def test_reference_and_manual_are_what_the_table_gives():
    assert cli_docs.REFERENCE.read_text() == cli_docs.reference()
    assert cli_docs.MANUAL.read_text() == cli_docs.manual()
    assert cli_docs.MOUNT_MANUAL.read_text() == cli_docs.mount_manual()


@pytest.mark.parametrize("page", [cli_docs.MANUAL, cli_docs.MOUNT_MANUAL], ids=lambda page: page.name)
def test_manual_page_is_installed_and_has_no_mistakes(page):
    require("groff")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=True
    )
    assert "containers-storage.conf(5)" in done.stdout
    assert done.stderr == ""
    assert f'["fsd/{page.name}"]' in (page.parents[1] / "pyproject.toml").read_text()


def test_every_verb_has_its_function_and_its_help():
    for verb in VERBS:
        assert callable(verb.function())
        assert cli_docs.verb_help(verb).startswith(f"Usage: fsd {verb.name}")
    assert len(BY_NAME) == sum(len(verb.names) for verb in VERBS)


def test_verbs_of_both_command_lines_are_known_as_such():
    assert BY_NAME.keys() & STORAGE_VERBS.keys() == SHARED


def test_kinds_of_prune_are_those_of_the_store():
    assert set(PRUNED) == {kind.value for kind in Kind} | {"all"}


def test_completion_scripts_name_every_verb_and_parse(tmp_path):
    for script in (bash(), zsh(), fish()):
        assert all(re.search(rf"\b{verb.name}\b", script) for verb in VERBS)
    (tmp_path / "fsd.bash").write_text(bash())
    subprocess.run(["bash", "-n", tmp_path / "fsd.bash"], check=True)


def test_bash_completes_verbs_and_names(dirs, tmp_path):
    (tmp_path / "fsd").write_text(f'#!/bin/sh\nexec {" ".join(fsd_argv(dirs))} "$@"\n')
    (tmp_path / "fsd").chmod(0o755)
    script = f"""{bash()}
COMP_WORDBREAKS=$' \\t\\n'
complete_words() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fsd; printf '%s\\n' "${{COMPREPLY[@]}}"; }}
complete_words fsd rollb
complete_words fsd history local
complete_words fsd prune dang
"""
    env = fsd_env() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rollback", "localhost/small:1", "dangling-images"]


def test_wrong_verb_suggests_the_near_one(dirs):
    done = fsd(dirs, "snapshto", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'snapshot'" in done.stderr


@pytest.mark.parametrize(
    ("habit", "told"),
    [("ps", "fsd containers"), ("run", "podman runs"), ("cp", "fsd cat"), ("system", "fsd df")],
)
def test_what_podman_has_and_fsd_has_not_is_told(dirs, habit, told):
    done = fsd(dirs, habit, "x", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert told in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["rm"],
        ["names", "small:1", "x"],
        ["prune", "nosuch"],
        ["save", "small:1", "--format", "zip"],
        ["trash", "restore"],
        ["copy", "oci:/x", "oci:/y"],
        ["on-write", "x", "maybe"],
        ["events", "-n", "x"],
        ["help", "nosuch"],
        ["--nosuch", "images"],
    ],
)
def test_wrong_arguments_are_usage_errors(dirs, argv):
    done = fsd(dirs, *argv, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["show", "nosuch"], 1),
        (["history", "nosuch"], 1),
        (["changes", "nosuch"], 1),
        (["cat", "nosuch:/x"], 1),
        (["rm", "nosuch"], 125),
        (["tag", "nosuch", "x"], 125),
        (["untag", "nosuch:9"], 125),
        (["fill", "nosuch", "small:1"], 125),
        (["limit", "nosuch"], 125),
        (["trash", "purge", "nosuch"], 125),
        (["orphans", "reap", "nosuch"], 125),
        (["prune", "--token", "nosuch"], 125),
        (["load", "/nonexistent"], 125),
    ],
)
def test_unknown_objects_are_an_answer_to_questions_and_a_failure_else(dirs, argv, code):
    done = fsd(dirs, *argv, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("fsd: ")
    assert "Traceback" not in done.stderr


def test_questions_where_there_is_no_store_make_none(tmp_path):
    nowhere = StoreDirs(tmp_path / "g", tmp_path / "r")
    for verb, code in (("tree", 1), ("df", 1), ("check", 1), ("trash", 125), ("prune", 125)):
        done = fsd(nowhere, verb, check=False)
        assert (done.returncode, "there is no store" in done.stderr) == (code, True)
    assert not nowhere.graphroot.exists()


# -- looking ---------------------------------------------------------------------------------------


def test_show_tells_kind_and_record(dirs):
    (image,) = rows(dirs, "show", "small:1")
    assert (image["kind"], image["names"]) == ("image", ["localhost/small:1"])
    assert image["record"]["id"] == image["id"]


def test_ls_and_cat_stay_inside_the_object(dirs):
    assert "hostname" in fsd(dirs, "ls", "localhost/small:1:/etc").stdout.split()
    assert fsd(dirs, "cat", "small:1:/etc/hostname").stdout == "fsd-test\n"
    (entry,) = [e for e in rows(dirs, "ls", "small:1:/etc") if e["name"] == "hostname"]
    assert (entry["kind"], entry["size"]) == ("file", 9)
    fsd(dirs, "create", "linked", "small:1")
    (rootfs(dirs, "linked") / "out").symlink_to("/../../../etc/hostname")
    assert fsd(dirs, "cat", "linked:/out").stdout == "fsd-test\n"
    assert fsd(dirs, "cat", "small:1:/nosuch", check=False).returncode == 125


def test_tree_du_df_history_graph_show_the_store(dirs):
    image = rows(dirs, "images", "small:1")[0]
    assert image["layer"][:12] in fsd(dirs, "tree").stdout
    (layer,) = [r for r in rows(dirs, "tree") if r["id"] == image["layer"]]
    assert image["id"] in layer["images"]
    (figures,) = rows(dirs, "du", "small:1")
    assert figures["size"] > 0
    assert {"image", "layer"} <= {row["kind"] for row in rows(dirs, "du")}
    assert rows(dirs, "df")["free"] > 0
    assert rows(dirs, "history", "small:1")[0]["command"] == "fsd import"
    assert fsd(dirs, "graph").stdout.startswith("<svg")
    assert fsd(dirs, "graph", "--format", "dot").stdout.startswith("digraph")


def test_changes_and_diff_tell_what_differs(dirs, tmp_path):
    fsd(dirs, "create", "edited", "small:1")
    (rootfs(dirs, "edited") / "etc/hostname").write_text("edited\n")
    fsd(dirs, "snapshot", "edited", "before")
    (rootfs(dirs, "edited") / "new").write_text("new\n")
    assert "C /etc/hostname" in fsd(dirs, "changes", "edited").stdout.splitlines()
    assert "A /new" in fsd(dirs, "changes", "edited@before").stdout.splitlines()
    assert {"kind": "A", "path": "/new"} in rows(dirs, "diff", "small:1", "edited")
    assert fsd(dirs, "diff", "-q", "small:1", "edited", check=False).returncode == 1
    assert fsd(dirs, "diff", "-q", "edited@before", "edited@before").returncode == 0
    fsd(dirs, "changes", "edited", "--tar", tmp_path / "c.tar")
    listed = subprocess.run(["tar", "-tf", tmp_path / "c.tar"], capture_output=True, text=True, check=True)
    assert {"etc/hostname", "new"} <= set(listed.stdout.split())


def test_config_metrics_locks_broken_answer_without_a_daemon(dirs):
    assert rows(dirs, "config")["bursts"]["quiet"] == 60
    assert any(row["name"] == "fsd_objects" for row in rows(dirs, "metrics"))
    assert "fsd_filesystem_bytes" in fsd(dirs, "metrics").stdout
    assert all(not row["held"] for row in rows(dirs, "locks"))
    assert rows(dirs, "broken") == []


def test_events_tell_what_others_do(dirs):
    argv = fsd_argv(dirs, "events", "-n", "1", "--timeout", "60")
    with subprocess.Popen(argv, env=fsd_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        for number in range(100):  # whenever it has begun to look
            fsd(dirs, "create", f"event{number}")
            if watching.poll() is not None:
                break
        event = json.loads(watching.stdout.read())
    assert (event["table"] in ("containers", "layers"), event["action"]) == (True, "create")


# -- changing --------------------------------------------------------------------------------------


def test_objects_are_named_renamed_tagged_and_described(dirs):
    fsd(dirs, "create", "one")
    assert fsd(dirs, "rename", "one", "uno").stdout == "uno\n"
    fsd(dirs, "names", "uno", "eins", "--add")
    assert fsd(dirs, "names", "eins").stdout == "uno\neins\n"
    assert rows(dirs, "names", "uno", "ein", "--set")["names"] == ["ein"]
    fsd(dirs, "tag", "small:1", "small:2")
    assert "localhost/small:2" in rows(dirs, "images", "small:1")[0]["names"]
    fsd(dirs, "untag", "small:2")
    assert rows(dirs, "images", "small:1")[0]["names"] == ["localhost/small:1"]
    fsd(dirs, "metadata", "ein", "a note")
    assert fsd(dirs, "metadata", "ein").stdout == "a note\n"
    fsd(dirs, "big-data", "ein", "note", "--set", "-", input=b"bytes")
    assert fsd(dirs, "big-data", "ein", "note").stdout == "bytes"
    assert "note" not in rows(dirs, "big-data", "ein", "note", "--remove")["big-data"]


def test_a_name_of_two_kinds_must_say_which(dirs):
    fsd(dirs, "create", "small")
    fsd(dirs, "tag", "small:1", "small")
    done = fsd(dirs, "rm", "small", check=False)
    assert done.returncode == 125
    assert "containers/small" in done.stderr
    fsd(dirs, "rm", "containers/small")
    fsd(dirs, "untag", "small")
    assert fsd(dirs, "containers", "small", check=False).returncode == 1


def test_removed_objects_come_back_or_are_purged(dirs):
    fsd(dirs, "create", "gone", "small:1")
    entry = rows(dirs, "rm", "gone")[0]["trash"]
    assert entry in {row["entry"] for row in rows(dirs, "trash")}
    fsd(dirs, "trash", "restore", entry)
    assert rows(dirs, "containers", "gone")[0]["names"] == ["gone"]
    entry = fsd(dirs, "rm", "gone").stdout.strip()
    fsd(dirs, "pin", f"trash/{entry}")
    assert fsd(dirs, "trash", "purge", entry, check=False).returncode == 125
    fsd(dirs, "unpin", f"trash/{entry}")
    fsd(dirs, "trash", "purge", entry)
    assert entry not in {row["entry"] for row in rows(dirs, "trash")}
    fsd(dirs, "create", "gone", "small:1")
    assert rows(dirs, "rm", "--now", "gone")[0]["trash"] is None


def test_snapshots_are_taken_listed_renamed_pinned_and_rolled_back(dirs):
    fsd(dirs, "create", "history", "small:1")
    fsd(dirs, "snapshot", "history", "a")
    fsd(dirs, "snapshot", "history", "a", "--rename", "b")
    fsd(dirs, "pin", "history@b")
    assert fsd(dirs, "snapshot", "history", "b", "--delete", check=False).returncode == 125
    (listed,) = rows(dirs, "snapshots", "history")
    assert (listed["name"], listed["pinned"], listed["container-name"]) == ("b", True, "history")
    (rootfs(dirs, "history") / "etc/hostname").write_text("other\n")
    kept = rows(dirs, "rollback", "history", "b")["name"]
    assert fsd(dirs, "cat", "history:/etc/hostname").stdout == "fsd-test\n"
    assert fsd(dirs, "cat", f"history@{kept}:/etc/hostname").stdout == "other\n"
    fsd(dirs, "unpin", "history@b")


def test_pin_protects_and_limit_and_on_write_are_kept(dirs):
    fsd(dirs, "create", "kept", "small:1")
    fsd(dirs, "pin", "kept")
    done = fsd(dirs, "rm", "kept", check=False)
    assert (done.returncode, "pinned" in done.stderr) == (125, True)
    fsd(dirs, "unpin", "kept")
    fsd(dirs, "limit", "kept", "10G")
    assert rows(dirs, "limit", "kept")["limit"] == 10 << 30
    fsd(dirs, "limit", "kept", "0")
    assert fsd(dirs, "limit", "kept").stdout == "no limit\n"
    fsd(dirs, "on-write", "kept", "none")
    assert fsd(dirs, "on-write", "kept").stdout == "none\n"


def test_empty_containers_and_layers_are_filled(dirs, rootfs_tar):
    fsd(dirs, "create", "empty")
    fsd(dirs, "fill", "empty", "small:1")
    assert fsd(dirs, "cat", "empty:/etc/hostname").stdout == "fsd-test\n"
    assert fsd(dirs, "fill", "empty", "small:1", check=False).returncode == 125
    fsd(dirs, "create", "--layer", "base")
    assert rows(dirs, "refill", "base", rootfs_tar)["diff-digest"].startswith("sha256:")
    fsd(dirs, "rm", "--now", "layers/base")


def test_check_finds_and_repairs(dirs):
    assert fsd(dirs, "check").stdout == "nothing is wrong\n"
    stray = dirs.graphroot / "btrfs-layers" / f"{'e' * 64}.tar-split.gz"
    stray.write_bytes(b"")
    (problem,) = rows_of_failing(dirs, "check")
    assert problem["problem"] == "file or directory that belongs to nothing"
    assert [row["repaired"] for row in rows(dirs, "check", "--repair")] == [True]


def rows_of_failing(dirs, *args):
    done = fsd(dirs, *args, "--json", check=False)
    assert done.returncode == 1
    return json.loads(done.stdout)


def test_prune_lists_first_and_removes_exactly_that(dirs):
    fsd(dirs, "create", "idle")
    plan = rows(dirs, "prune", "--dry-run", "dangling-images", "expired-trash")
    assert plan["items"] == []
    made = fsd(dirs, "commit", "idle").stdout.strip()
    plan = rows(dirs, "prune", "--dry-run", "dangling-images")
    assert [item["id"] for item in plan["items"]] == [made]
    outcome = rows(dirs, "prune", "--token", plan["token"])
    assert [item["id"] for item in outcome["removed"]] == [made]
    assert rows(dirs, "orphans") == []


# -- images in and out -----------------------------------------------------------------------------


def test_commit_save_load_give_podman_an_image(dirs, home, tmp_path):
    require("podman")
    podman = ToolBox(dirs, "btrfs", home / "conf").podman()
    fsd(dirs, "create", "made", "small:1")
    (rootfs(dirs, "made") / "srv/owned").write_text("made\n")
    image = rows(dirs, "commit", "made", "localhost/made:1")
    assert podman("run", "--rm", "made:1", "cat", "/srv/owned").stdout == "made\n"
    for kind in ("docker-archive", "oci-archive"):
        fsd(dirs, "save", "made:1", "--format", kind, "-o", tmp_path / kind)
    fsd(dirs, "rm", "--now", "images/localhost/made:1")
    for kind in ("docker-archive", "oci-archive"):
        (loaded,) = rows(dirs, "load", tmp_path / kind)
        assert (loaded["id"], loaded["names"]) == (image["id"], ["localhost/made:1"])
        fsd(dirs, "rm", "--now", "made:1")


def test_copy_goes_through_layouts_archives_and_other_stores(dirs, home, tmp_path):
    image = rows(dirs, "images", "small:1")[0]["id"]
    fsd(dirs, "copy", "small:1", f"oci:{tmp_path}/layout:first")
    fsd(dirs, "copy", "small:1", f"oci-archive:{tmp_path}/small.tar")
    other = StoreDirs(home / "other", home / "other.run")
    fsd(dirs, "copy", "small:1", f"containers-storage:[btrfs@{other.graphroot}+{other.runroot}]copied:1")
    assert "localhost/copied:1" in rows(other, "images", image)[0]["names"]
    fsd(other, "rm", "--now", "copied:1")
    fsd(other, "copy", f"oci:{tmp_path}/layout:first", "again:1")
    assert rows(other, "images", "again:1")[0]["id"] == image
    fsd(other, "rm", "--now", "again:1")
    assert rows(other, "load", tmp_path / "layout")[0]["id"] == image
    fsd(other, "copy", f"oci-archive:{tmp_path}/small.tar", "third:1")
    done = fsd(dirs, "copy", f"oci:{tmp_path}/layout:nosuch", "x", check=False)
    assert (done.returncode, "nosuch" in done.stderr) == (125, True)


def test_export_gives_the_whole_tree(dirs, tmp_path):
    fsd(dirs, "export", "small:1", "-o", tmp_path / "t.tar")
    subprocess.run(["tar", "-xf", tmp_path / "t.tar", "-C", tmp_path, "etc/hostname"], check=True)
    assert (tmp_path / "etc/hostname").read_text() == "fsd-test\n"


def test_pull_without_skopeo_says_how_to_get_it(dirs, tmp_path):
    done = subprocess.run(
        fsd_argv(dirs, "push", "small:1"),
        env=fsd_env() | {"PATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 125
    assert b"skopeo is not installed" in done.stderr
