"""Drafts in the tree: an image's ``rootfs`` that may be written, because a write goes to a container.

``echo draft > images/X/on-write`` allows it. The first write makes the container, by snapshot, and ``rootfs``
shows it from then on, under the same nodes (``fsd.plane``, exchange). The image itself never changes:
``commit`` of the draft, which stands in ``containers/`` like any other, makes a new image of it and ends it
as a draft, ``rmdir`` of it gives it up; either way ``rootfs`` shows the image again, and another write opens
another draft. ``deny`` ends that, and leaves an open draft alone. What is kept of it is :mod:`store.drafts`'.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fsd.site import ContainerSubject
from store import drafts

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.site import ImageSubject


def draft_of(image: ImageSubject) -> ContainerSubject | None:
    """The open draft of an image."""
    site = image.site
    container = drafts.draft_of(site.history.state, site.now.catalog, image.id)
    return ContainerSubject(site, container.id) if container else None


def is_draftable(image: ImageSubject) -> bool:
    """Whether a write to the image opens a draft."""
    return drafts.choice_of(image.site.history.state, image.id) == drafts.DRAFT


def on_write(image: ImageSubject) -> str:
    """``deny``, or ``draft``, with the container's name after it while one is open."""
    draft = draft_of(image)
    if draft is not None:
        return f"{drafts.DRAFT} {draft.path}"
    return drafts.choice_of(image.site.history.state, image.id)


def set_on_write(image: ImageSubject, value: str, append: bool) -> Callable[[], object]:
    """``draft`` lets the first write open a draft; ``deny`` forbids it and leaves an open one alone."""
    choice = value.strip()
    if not choice:
        return _nothing
    site = image.site
    return functools.partial(
        drafts.choose, site.store, site.history.state, image.record, drafts.parse_choice(choice)
    )


def open_draft(image: ImageSubject) -> ContainerSubject:
    """The draft of an image, made if there is none."""
    site = image.site
    container = drafts.open_draft(site.store, site.history.state, site.now.catalog, image.record)
    return ContainerSubject(site, container.id)


def end_draft(container: ContainerSubject) -> None:
    """Let the image whose draft this is show its own content again; nothing for other containers."""
    drafts.end_draft(container.site.history.state, container.id)


def _nothing() -> None:
    """The work of an empty write."""
