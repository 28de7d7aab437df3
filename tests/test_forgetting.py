"""What is kept for objects that other tools removed is let go, and nothing else."""

from __future__ import annotations

from contextlib import closing

import pytest

from store.forgetting import forget_gone
from store.history import History
from store.state import BurstTimes
from store.trash import Trash


@pytest.fixture
def history(store):
    history = History(store)
    with closing(history.state):
        yield history


def test_what_other_tools_removed_is_forgotten(store, history, containers_storage) -> None:
    layer = store.create_layer()
    ids = {name: store.create_container(names=[name]).id for name in ("stays", "removed", "trashed")}
    image = store.create_image(names=["localhost/a:1"], layer=layer.id).id
    trash, state = Trash(history), history.state
    for container in ids.values():
        history.pins.pin("containers", container)
        for kind in ("containers", "userdata", "snapshots"):
            state.view_number(f"{kind}/{container}/xyz")
    history.pins.pin("images", image)
    for key in (f"images/{image}/1", f"drafts/{image}/1", f"layers/{layer.id}/1", "trash/x/1"):
        state.view_number(key)
    state.put_burst(ids["removed"], BurstTimes(started_ns=1, mutated_ns=2))
    containers_storage("delete-container", "removed")
    history.pins.unpin("containers", ids["trashed"])
    trash.remove_container("trashed")
    containers_storage("delete-image", image)
    assert forget_gone(history, trash) == (ids["removed"],)
    kept = {key.split("/")[1] for key in state.view_keys()}
    assert kept == {ids["stays"], ids["trashed"], "x"}
    assert history.pins.all() == {("containers", ids["stays"]), ("images", image)}
    assert state.burst(ids["removed"]) is None
    assert forget_gone(history, trash) == ()
