"""Commands of the containers-storage command line that show one object, and measure it."""

from __future__ import annotations

from json import loads
from typing import TYPE_CHECKING

from fsd.storage_errors import EXPECTED, text_of
from fsd.storage_show import print_records
from store.errors import ContainerUnknown, ImageUnknown, LayerUnknown
from store.records import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.storage_context import Run
    from store.records import Container, Image, Layer


def image(run: Run) -> int:
    """``image``: one or more images; exit code 1 if one of them is missing."""
    found: list[Image] = []
    for key in run.args:
        try:
            found.append(run.store.image(key))
        except ImageUnknown:
            continue
    if run.json:
        print_records(run, "images", [loads(encode(record)) for record in found])
    for record in [] if run.json else found:
        lines = [f"ID: {record.id}", *(f"Name: {name}" for name in record.names)]
        lines += [f"Top Layer: {layer}" for layer in (record.layer, *record.mapped_layers)]
        lines += [f"Digest: {digest}" for digest in record.digests]
        lines += [f"Data: {key}" for key in record.big_data_names]
        lines.append(_size(run.store.image_size, record.id))
        run.say("".join(f"{line}\n" for line in lines))
    return int(len(found) != len(run.args))


def container(run: Run) -> int:
    """``container``: one or more containers; exit code 1 if one of them is missing."""
    found = _containers(run)
    if run.json:
        print_records(run, "containers", [loads(encode(record)) for record in found])
    for record in [] if run.json else found:
        lines = [f"ID: {record.id}", *(f"Name: {name}" for name in record.names), f"Image: {record.image}"]
        made_from = run.store.catalog().image(record.image)
        lines += [f"Image name: {name}" for name in (made_from.names if made_from else ())]
        lines.append(_size(lambda key: _container_size(run, key), record.id))
        lines += [f"Layer: {record.layer}", *(f"Data: {key}" for key in record.big_data_names)]
        run.say("".join(f"{line}\n" for line in lines))
    return int(len(found) != len(run.args))


def _containers(run: Run) -> list[Container]:
    found = []
    for key in run.args:
        try:
            found.append(run.store.container(key))
        except ContainerUnknown:
            continue
    return found


def _container_size(run: Run, key: str) -> int:
    """A container's size; its private directories are made by asking, as in the original."""
    run.store.container_directory(key)
    run.store.container_run_directory(key)
    return run.store.container_size(key)


def _size(measure: Callable[[str], int], key: str) -> str:
    try:
        return f"Size: {measure(key)}"
    except EXPECTED as error:
        return f"Size unknown: {text_of(error)}"


def container_parent_owners(run: Run) -> int:
    """``container-parent-owners``: owners of the directories above mounted containers."""
    found = _containers(run)
    for record in found:
        owners = _owners(run, record.id, "ContainerParentOwner", run.store.container_parent_owners)
        _print_owners(run, record.id, *owners, always=True)
    return int(len(found) != len(run.args))


def layer_parent_owners(run: Run) -> int:
    """``layer-parent-owners``: owners of the directories above mounted layers."""
    found: list[Layer] = []
    for key in run.args:
        try:
            found.append(run.store.layer(key))
        except LayerUnknown:
            continue
    for record in found:
        owners = _owners(run, record.id, "LayerParentOwner", run.store.layer_parent_owners)
        _print_owners(run, record.id, *owners, always=False)
    return int(len(found) != len(run.args))


def _owners(
    run: Run, key: str, what: str, measure: Callable[[str], tuple[list[int], list[int]]]
) -> tuple[list[int], list[int]]:
    try:
        return measure(key)
    except EXPECTED as error:
        run.fail(f"{what}: {text_of(error)}")


def _print_owners(run: Run, key: str, uids: list[int], gids: list[int], *, always: bool) -> None:
    if run.json:
        run.dump({"ID": key, "UIDs": uids or None, "GIDs": gids or None})
        return
    run.say(f"ID: {key}\n")
    for label, ids in (("UIDs", uids), ("GIDs", gids)):
        if ids or always:
            run.say(f"{label}: [{' '.join(map(str, ids))}]\n")
