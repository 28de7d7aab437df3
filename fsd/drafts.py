"""Drafts: an image's ``rootfs`` that may be written, because it shows a container made from the image.

``echo draft > images/X/on-write`` opens one. The image itself never changes: ``commit`` of the draft, which
stands in ``containers/`` like any other, makes a new image of it, ``rmdir`` of it gives it up, and either
``deny`` or its removal lets ``rootfs`` show the image again.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from fsd.site import ContainerSubject
from store.errors import BadValue

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


def on_write(image: ImageSubject) -> str:
    """``deny``, or ``draft`` while one is open, with the container's name after it."""
    draft = draft_of(image)
    return f"draft {draft.path}" if draft else "deny"


def set_on_write(image: ImageSubject, value: str, append: bool) -> Callable[[], object]:
    """``draft`` opens a draft, ``deny`` lets ``rootfs`` show the image again and leaves the draft alone."""
    choice = value.strip()
    if choice and choice not in CHOICES:
        raise BadValue(f"{choice!r:.80} is none of {', '.join(CHOICES)}")
    return functools.partial(_open_draft if choice == "draft" else _close if choice else _nothing, image)


def _open_draft(image: ImageSubject) -> None:
    if draft_of(image) is not None:
        return
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


def _close(image: ImageSubject) -> None:
    image.site.history.state.set_setting(_object(image), _SETTING, None)


def _nothing(image: ImageSubject) -> None:
    """The work of an empty write."""


def _object(image: ImageSubject) -> str:
    return f"images/{image.id}"
