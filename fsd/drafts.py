"""Drafts: an image's ``rootfs`` that may be written, because a write goes to a container made from the image.

``echo draft > images/X/on-write`` allows it. The first write makes the container, by snapshot, and ``rootfs``
shows it from then on, under the same nodes (``fsd.plane``, exchange). The image itself never changes:
``commit`` of the draft, which stands in ``containers/`` like any other, makes a new image of it and ends it
as a draft, ``rmdir`` of it gives it up; either way ``rootfs`` shows the image again, and another write opens
another draft. ``deny`` ends that, and leaves an open draft alone.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from fsd.site import ContainerSubject
from store.errors import BadValue
from store.timer import ON_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.site import ImageSubject

CHOICES = ("deny", "draft")
_SETTING = "draft"


def draft_of(image: ImageSubject) -> ContainerSubject | None:
    """The open draft of an image."""
    container_id = image.site.history.state.settings(_object(image)).get(_SETTING, "")
    container = image.site.now.catalog.container(container_id) if container_id else None
    return ContainerSubject(image.site, container.id) if container else None


def is_draftable(image: ImageSubject) -> bool:
    """Whether a write to the image opens a draft."""
    return image.site.history.state.settings(_object(image)).get(ON_WRITE) == "draft"


def on_write(image: ImageSubject) -> str:
    """``deny``, or ``draft``, with the container's name after it while one is open."""
    draft = draft_of(image)
    if draft is not None:
        return f"draft {draft.path}"
    return "draft" if is_draftable(image) else "deny"


def set_on_write(image: ImageSubject, value: str, append: bool) -> Callable[[], object]:
    """``draft`` lets the first write open a draft; ``deny`` forbids it and leaves an open one alone."""
    choice = value.strip()
    if choice and choice not in CHOICES:
        raise BadValue(f"{choice!r:.80} is none of {', '.join(CHOICES)}")
    return functools.partial(_allow if choice == "draft" else _deny if choice else _nothing, image)


def open_draft(image: ImageSubject) -> ContainerSubject:
    """The draft of an image, made if there is none."""
    draft = draft_of(image)
    if draft is not None:
        return draft
    site, record = image.site, image.record
    base = re.sub(
        r"[^a-zA-Z0-9_.-]+", "-", record.names[0].rpartition("/")[2] if record.names else record.id[:12]
    )
    names = (f"draft-{base}{f'-{number}' if number else ''}" for number in range(1000))
    name = next(name for name in names if site.now.find("containers", name) is None)
    container = site.store.create_container(names=[name], image=record.id)
    site.store.container_directory(container.id)
    site.store.container_run_directory(container.id)
    site.history.state.set_setting(_object(image), _SETTING, container.id)
    return ContainerSubject(site, container.id)


def end_draft(container: ContainerSubject) -> None:
    """Let the image whose draft this is show its own content again; nothing for other containers."""
    state = container.site.history.state
    for obj, draft in state.settings_of(_SETTING).items():
        if draft == container.id:
            state.set_setting(obj, _SETTING, None)


def _allow(image: ImageSubject) -> None:
    """Without snapshots there is nothing to go over to at a write: the draft is opened now."""
    image.site.history.state.set_setting(_object(image), ON_WRITE, "draft")
    if not image.site.store.driver.capabilities.snapshots:
        open_draft(image)


def _deny(image: ImageSubject) -> None:
    for key in (ON_WRITE, _SETTING):
        image.site.history.state.set_setting(_object(image), key, None)


def _nothing(image: ImageSubject) -> None:
    """The work of an empty write."""


def _object(image: ImageSubject) -> str:
    return f"images/{image.id}"
