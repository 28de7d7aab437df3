"""What ``state.db`` keeps for objects that other tools removed is let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from store.history import History
    from store.trash import Trash

OWNERS: Final = {
    "containers": "containers",
    "drafts": "images",
    "images": "images",
    "layers": "layers",
    "rundata": "containers",
    "snapshots": "containers",
    "userdata": "containers",
}
"""The table of the object whose ID follows the first word of a view's key."""


def forget_gone(history: History, trash: Trash) -> tuple[str, ...]:
    """Forget containers that are neither in the store nor in the trash, and free the numbers of views.

    IDs of images and layers follow from their content, so what people chose for them waits until they come
    back; snapshots stay as well (they are orphans, see :mod:`store.orphans`).

    Returns:
        the IDs of the containers that were forgotten
    """
    state = history.state
    chosen = state.objects()  # first: what is younger than the catalog is not gone
    views = state.view_keys()
    catalog, trashed = history.store.catalog(), {entry.object_id for entry in trash.list()}

    find = {"containers": catalog.container, "images": catalog.image, "layers": catalog.layer}

    def is_gone(table: str, object_id: str) -> bool:
        return object_id not in trashed and find[table](object_id) is None

    containers = [owner.split("/")[1] for owner in chosen if owner.startswith("containers/")]
    gone = tuple(container for container in containers if is_gone("containers", container))
    for container in gone:
        state.forget_container(container)
    parts = [(key, *key.split("/")[:2]) for key in views]
    state.drop_views(key for key, kind, owner in parts if kind in OWNERS and is_gone(OWNERS[kind], owner))
    return gone
