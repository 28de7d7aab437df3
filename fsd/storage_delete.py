"""Removal on the containers-storage command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsd.storage_errors import EXPECTED, text_of
from store.errors import (
    ImageUsedByContainer,
    LayerHasChildren,
    LayerUsedByContainer,
    LayerUsedByImage,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.storage_context import Run


def delete(run: Run) -> int:
    """``delete``: whatever has that key, without asking whether anything needs it."""
    return _each(run, run.store.delete)


def delete_layer(run: Run) -> int:
    """``delete-layer``: layers nothing needs; the rules hold for names too, unlike in the original."""
    return _each(run, run.store.delete_layer)


def delete_container(run: Run) -> int:
    """``delete-container``."""
    return _each(run, run.store.delete_container)


def _each(run: Run, remove: Callable[[str], None]) -> int:
    """Remove one object after the other, and tell what went wrong with which."""
    failed: dict[str, str] = {}
    for key in run.args:
        failed[key] = ""
        try:
            remove(key)
        except EXPECTED as error:
            failed[key] = _refusal(run, error, key)
    if run.json:
        run.dump(dict(sorted(failed.items())))
    else:
        for key, text in failed.items():
            if text:
                run.complain(f"{key}: {text}")
    return int(any(failed.values()))


def delete_image(run: Run) -> int:
    """``delete-image``: images with the layers only they need; ``--test`` only tells which."""
    _ = run.store
    results: dict[str, dict[str, list[str] | str]] = {}
    for key in run.args:
        try:
            removed = run.store.delete_image(key, commit=not run.on("test"))
            results[key] = {"deleted-layers": removed} if removed else {}
        except EXPECTED as error:
            results[key] = {"error": _refusal(run, error, key)}
    if run.json:
        run.dump(dict(sorted(results.items())))
    else:
        for key, result in results.items():
            for lines in result.values():
                for text in [lines] if isinstance(lines, str) else lines:
                    run.complain(f"{key}: {text}")
    return int(any("error" in result for result in results.values()))


def _refusal(run: Run, error: Exception, key: str) -> str:
    """Why an object is kept, naming who needs it as the original does."""
    text = text_of(error, call="unlinkat")
    if not isinstance(error, StoreError) or not error.holder:
        return text
    if isinstance(error, LayerHasChildren):
        return f"used by layer {error.holder}: {text}"
    if isinstance(error, ImageUsedByContainer):
        return f"image used by {error.holder}: {text}"
    if isinstance(error, (LayerUsedByImage, LayerUsedByContainer)):
        kind = "image" if isinstance(error, LayerUsedByImage) else "container"
        return f"layer {run.store.layer(key).id} used by {kind} {error.holder}: {text}"
    return text


def wipe(run: Run) -> int:
    """``wipe``: everything."""
    try:
        run.store.wipe()
    except EXPECTED as error:
        if not run.json:
            run.fail(f"wipe: {text_of(error)}")
        run.dump({})
        return 1
    if run.json:
        run.dump("")
    return 0
