"""Drafts: containers that take the writes to an image, kept as two settings of the image.

``on-write`` says whether a write to the image opens a draft, ``draft`` which container is the open one. The
image itself never changes. A draft ends by commit or removal of its container, and ``deny`` forbids further
ones and leaves the open one alone, as a container like any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from store.errors import BadValue
from store.timer import ON_WRITE

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.records import Container, Image
    from store.state import State
    from store.store import Store

DENY: Final = "deny"
DRAFT: Final = "draft"
CHOICES: Final = (DENY, DRAFT)
_OPEN: Final = "draft"
"""The setting that names the open draft."""


def parse_choice(text: str) -> str:
    """One of :data:`CHOICES`.

    Raises:
        BadValue: it is none
    """
    if text not in CHOICES:
        raise BadValue(f"{text!r:.80} is none of {', '.join(CHOICES)}")
    return text


def choice_of(state: State, image_id: str) -> str:
    """Whether a write to the image opens a draft, as one of :data:`CHOICES`."""
    return DRAFT if state.settings(_object(image_id)).get(ON_WRITE) == DRAFT else DENY


def draft_of(state: State, catalog: Catalog, image_id: str) -> Container | None:
    """The open draft of an image."""
    container_id = state.settings(_object(image_id)).get(_OPEN, "")
    return catalog.container(container_id) if container_id else None


def choose(store: Store, state: State, image: Image, choice: str) -> None:
    """Let the first write open a draft, or forbid it.

    Without snapshots there is nothing to go over to at a write: the draft is opened at once.

    Raises:
        BadValue: ``choice`` is none of :data:`CHOICES`; what making a container raises
    """
    if parse_choice(choice) == DENY:
        for key in (ON_WRITE, _OPEN):
            state.set_setting(_object(image.id), key, None)
        return
    state.set_setting(_object(image.id), ON_WRITE, DRAFT)
    if not store.driver.capabilities.snapshots:
        open_draft(store, state, store.catalog(), image)


def open_draft(store: Store, state: State, catalog: Catalog, image: Image) -> Container:
    """The draft of an image, made if there is none; ``catalog`` says what there is."""
    draft = draft_of(state, catalog, image.id)
    if draft is not None:
        return draft
    last = image.names[0].rpartition("/")[2] if image.names else image.id[:12]
    base = re.sub(r"[^a-zA-Z0-9_.-]+", "-", last)
    names = (f"draft-{base}{f'-{number}' if number else ''}" for number in range(1000))
    name = next(name for name in names if catalog.find_container(name) is None)
    container = store.create_container(names=[name], image=image.id)
    store.container_directory(container.id)
    store.container_run_directory(container.id)
    state.set_setting(_object(image.id), _OPEN, container.id)
    return container


def settings_of_images(state: State) -> dict[str, tuple[str, str]]:
    """The choice and the open draft's ID, or empty texts, of every image that has either."""
    choices, opened = state.settings_of(ON_WRITE), state.settings_of(_OPEN)
    return {
        obj.removeprefix("images/"): (choices.get(obj, ""), opened.get(obj, ""))
        for obj in choices.keys() | opened.keys()
        if obj.startswith("images/")
    }


def end_draft(state: State, container_id: str) -> None:
    """Let the image whose draft this is show its own content again; nothing for other containers."""
    for obj, draft in state.settings_of(_OPEN).items():
        if draft == container_id:
            state.set_setting(obj, _OPEN, None)


def _object(image_id: str) -> str:
    return f"images/{image_id}"
