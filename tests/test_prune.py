"""Pruning removes what the preview listed, no more, and says what it spared."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing

import pytest

from store.errors import BadValue, PlanUnknown
from store.fill import fill
from store.history import History
from store.orphans import Orphans
from store.prune import DEFAULT_KINDS, Kind, Prune, parse_kinds
from store.sizes import Sizes
from store.trash import Trash

MIB = 1 << 20
HOUR = 3600 * 10**9
ALL = frozenset(Kind)
STRAY = "ab" * 32


@pytest.fixture
def prune(trash):
    sizes = Sizes(trash.history, trash)
    return Prune(trash, Orphans(trash.history, trash), sizes)


@pytest.fixture
def full(store, trash):
    """Something of every kind, and beside each one something that stays."""
    used = image(store, "localhost/used:1", 1)
    running = store.create_container(names=["running"])
    fill(store, "running", "localhost/used:1")
    store.mount("running")
    stopped = store.create_container(names=["stopped"])
    fill(store, "stopped", "localhost/used:1")
    unused, dangling = image(store, "localhost/unused:1", 2), image(store, None, 4)
    base = image(store, None, 1)
    child = store.create_image(names=["localhost/child:1"], layer=store.create_layer(parent=base.layer).id)
    store.create_container(names=["gone"])
    entry = trash.remove_container("gone")
    stray = store.graphroot / "btrfs/subvolumes" / STRAY
    subprocess.run(["btrfs", "-q", "subvolume", "create", stray], check=True)
    temporary = store.table_directory("images") / ".tmp-images.json123"
    temporary.write_text("half")
    os.utime(temporary, ns=(0, 0))
    return {
        "used": used.id,
        "running": running.id,
        "stopped": stopped.id,
        "unused": unused.id,
        "dangling": dangling.id,
        "base": base.id,
        "child": child.id,
        "trash": entry.id,
        "orphan": STRAY,
        "file": str(temporary),
    }


def image(store, name, mebibytes):
    layer = store.create_layer()
    (store.driver.path_of(layer.id) / "data").write_bytes(os.urandom(mebibytes * MIB))
    return store.create_image(names=[name] if name else [], layer=layer.id)


def in_a_day() -> int:
    return time.time_ns() + 25 * HOUR


def listed(plan, full) -> set[str]:
    labels = {object_id: label for label, object_id in full.items()}
    return {labels[item.id] for item in plan.items}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (DEFAULT_KINDS, {"dangling", "trash", "file"}),
        ({Kind.UNUSED_IMAGES}, {"dangling", "unused", "base", "child"}),
        ({Kind.STOPPED_CONTAINERS}, {"stopped"}),
        ({Kind.ORPHANS}, {"orphan"}),
        ({Kind.TEMPORARY_FILES}, {"file"}),
        (set(), set()),
        (ALL, {"stopped", "dangling", "unused", "base", "child", "trash", "orphan", "file"}),
    ],
)
def test_running_removes_what_the_preview_lists_and_nothing_else(
    store, trash, prune, full, kinds, expected
) -> None:
    plan = prune.preview(kinds, now_ns=in_a_day())
    assert listed(plan, full) == expected
    outcome = prune.run(plan.token, now_ns=in_a_day())
    assert (outcome.removed, outcome.spared) == (plan.items, ())
    left = {label for label, object_id in full.items() if exists(store, trash, object_id)}
    assert left == full.keys() - expected
    assert prune.preview(kinds, now_ns=in_a_day()).items == ()
    store.unmount("running")


def exists(store, trash, object_id) -> bool:
    found = store.exists(object_id) or store.driver.exists(object_id) or os.path.exists(object_id)
    return found or object_id in {entry.id for entry in trash.list()}


def test_an_image_becomes_unused_with_the_containers_that_go(store, prune, full) -> None:
    store.unmount("running")
    plan = prune.preview({Kind.STOPPED_CONTAINERS, Kind.UNUSED_IMAGES})
    assert {"used", "running", "stopped"} <= listed(plan, full)
    assert prune.run(plan.token).spared == ()
    assert store.containers() == store.images() == store.layers() == []


def test_what_is_pinned_is_shown_and_spared(store, trash, prune, full) -> None:
    for kind, label in (("containers", "stopped"), ("images", "unused"), ("trash", "trash")):
        trash.pins.pin(kind, full[label])
    plan = prune.preview(ALL, now_ns=in_a_day())
    assert not listed(plan, full) & {"stopped", "unused", "used", "trash"}
    assert {item.id for item in plan.pinned} == {full["stopped"], full["unused"]}
    trash.pins.pin("images", full["dangling"])
    outcome = prune.run(plan.token, now_ns=in_a_day())
    assert [(item.id, why) for item, why in outcome.spared] == [(full["dangling"], "it is pinned")]
    assert exists(store, trash, full["dangling"])


def test_what_changed_since_the_preview_is_spared(store, prune, full) -> None:
    plan = prune.preview(ALL, now_ns=in_a_day())
    store.set_names(full["dangling"], ["localhost/wanted:1"])
    store.set_names(full["unused"], ["localhost/renamed:1"])
    store.create_container(names=["new"], image=full["child"])
    store.mount("stopped")
    late = image(store, None, 1)
    outcome = prune.run(plan.token, now_ns=in_a_day())
    assert {item.id for item, _ in outcome.spared} == {
        full["dangling"],
        full["unused"],
        full["child"],
        full["stopped"],
    }
    assert store.exists(late.id)
    assert all(store.exists(item.id) for item, _ in outcome.spared)


def test_what_gets_a_name_while_others_go_is_spared(store, prune, full) -> None:
    plan = prune.preview({Kind.DANGLING_IMAGES, Kind.STOPPED_CONTAINERS})
    kept = plan.items[-1].id
    assert kept != plan.items[0].id

    def name_the_last(item) -> None:
        if item == plan.items[0]:
            store.add_names(kept, ["localhost/wanted:1"])

    outcome = prune.run(plan.token, progress=name_the_last)
    assert [(item.id, why) for item, why in outcome.spared] == [(kept, "it changed since the preview")]
    assert store.image("localhost/wanted:1").id == kept


def test_what_somebody_works_in_is_spared_with_the_reason(store, prune, full) -> None:
    plan = prune.preview({Kind.STOPPED_CONTAINERS})
    tree = store.driver.path_of(store.container("stopped").layer)
    with subprocess.Popen(["sleep", "60"], cwd=tree) as process:
        try:
            ((item, why),) = prune.run(plan.token).spared
        finally:
            process.kill()
    assert item.id == full["stopped"]
    assert str(process.pid) in why


def test_the_same_list_has_the_same_token_in_every_process(store, trash, prune, full) -> None:
    plan = prune.preview()
    other = History(store)
    with closing(other.state):
        trash = Trash(other)
        again = Prune(trash, Orphans(other, trash), Sizes(other, trash))
        assert again.preview().token == plan.token
        assert again.preview(ALL).token != plan.token
        assert again.run(plan.token).removed == plan.items


def test_a_token_works_once_and_for_a_day(prune, full) -> None:
    plan = prune.preview()
    with pytest.raises(PlanUnknown):
        prune.run(plan.token, now_ns=plan.made_ns + 24 * HOUR)
    prune.run(plan.token)
    for token in (plan.token, "", "0" * 12, "../x"):
        with pytest.raises(PlanUnknown):
            prune.run(token)
    looked = prune.preview(ALL, keep=False)
    with pytest.raises(PlanUnknown):
        prune.run(looked.token)


def test_what_comes_back_is_measured_for_all_together(store, prune, full) -> None:
    plan = prune.preview({Kind.UNUSED_IMAGES}, measure=True)
    assert plan.frees == (2 + 4 + 1) * MIB
    assert prune.preview({Kind.UNUSED_IMAGES}).frees is None
    assert prune.preview(ALL, measure=True, now_ns=in_a_day()).frees == plan.frees


def test_figures_of_items_are_those_measured_before(prune, full) -> None:
    assert {item.frees for item in prune.preview({Kind.DANGLING_IMAGES}).items} == {None}
    prune._sizes.refresh(60)
    assert [item.frees for item in prune.preview({Kind.DANGLING_IMAGES}).items] == [4 * MIB]


def test_progress_is_told_of_each_item(prune, full) -> None:
    plan, told = prune.preview(ALL, now_ns=in_a_day()), []
    prune.run(plan.token, progress=told.append, now_ns=in_a_day())
    assert tuple(told) == plan.items


def test_a_file_of_a_living_writer_is_no_leftover(store, prune) -> None:
    (store.table_directory("layers") / ".tmp-layers.json1").write_text("")
    (store.table_directory("layers") / f"{STRAY}.tar-split.gz").write_text("")
    assert prune.preview({Kind.TEMPORARY_FILES}).items == ()
    assert len(prune.preview({Kind.TEMPORARY_FILES}, now_ns=time.time_ns() + 2 * HOUR).items) == 1


def test_kinds_are_words() -> None:
    assert parse_kinds(["orphans", "temporary-files"]) == {Kind.ORPHANS, Kind.TEMPORARY_FILES}
    assert parse_kinds(["all"]) == ALL
    with pytest.raises(BadValue, match="volumes"):
        parse_kinds(["volumes"])


def test_podman_agrees_on_what_dangles(store, prune, podman, rootfs_tar) -> None:
    first = podman("import", rootfs_tar, "localhost/a:1").stdout.strip()
    podman("import", "--message", "again", rootfs_tar, "localhost/a:1")
    dangling = podman("images", "-q", "--no-trunc", "--filter", "dangling=true").stdout.split()
    plan = prune.preview({Kind.DANGLING_IMAGES})
    assert [f"sha256:{item.id}" for item in plan.items] == dangling == [first]
    prune.run(plan.token)
    assert podman("images", "-q", "--filter", "dangling=true").stdout == ""
    assert podman("run", "--rm", "localhost/a:1", "echo", "ok").stdout == "ok\n"
