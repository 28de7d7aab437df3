"""Names, metadata, big data and private directories on the containers-storage command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fsd.storage_context import write_all
from fsd.storage_errors import text_of
from store.errors import (
    BadBigDataKey,
    BigDataUnknown,
    ContainerUnknown,
    DigestUnknown,
    ImageUnknown,
    LayerUnknown,
    NotAnID,
    SizeUnknown,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.storage_context import Run
    from store.records import Container, Image, Layer


def image_of(run: Run, key: str) -> Image:
    """The image of that key; fails with the original's text."""
    try:
        return run.store.image(key)
    except ImageUnknown as error:
        run.fail(f'locating image with ID "{key}": {error.original}')


def container_of(run: Run, key: str) -> Container:
    """The container of that key; fails with the original's text."""
    try:
        return run.store.container(key)
    except ContainerUnknown as error:
        run.fail(error.original)


def layer_of(run: Run, key: str) -> Layer:
    """The layer of that key; fails with the original's text."""
    try:
        return run.store.layer(key)
    except LayerUnknown as error:
        run.fail(error.original)


def read_file(run: Run, path: str) -> bytes:
    """Content of a file that a flag names."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except IsADirectoryError as error:
        run.fail(text_of(error, call="read"))
    except OSError as error:
        run.fail(text_of(error))


def _input(run: Run) -> bytes:
    path = run.text("file")
    return read_file(run, path) if path else sys.stdin.buffer.read()


def _output(run: Run, read: Callable[[], bytes]) -> int:
    """Write an item to the file or to standard output; like the original it makes the file first."""
    path = run.text("file")
    if not path:
        write_all(1, read())
        return 0
    try:
        with open(path, "wb") as file:
            file.write(read())
    except OSError as error:
        run.fail(text_of(error))
    return 0


# -- images --------------------------------------------------------------------------------------


def get_image_data(run: Run) -> int:
    """``get-image-data``."""
    image, key = image_of(run, run.args[0]), run.args[1]

    def read() -> bytes:
        try:
            return run.store.image_big_data(image.id, key)
        except BigDataUnknown as error:
            run.fail(
                f'locating item named "{key}" for image with ID "{image.id}" '
                f"(consider removing the image to resolve the issue): {error.original}"
            )

    return _output(run, read)


def get_image_data_size(run: Run) -> int:
    """``get-image-data-size``."""
    image = image_of(run, run.args[0])
    return _size(run, lambda: run.store.image_big_data_size(image.id, run.args[1]))


def get_image_data_digest(run: Run) -> int:
    """``get-image-data-digest``."""
    image = image_of(run, run.args[0])
    return _digest(run, lambda: run.store.image_big_data_digest(image.id, run.args[1]))


def set_image_data(run: Run) -> int:
    """``set-image-data``."""
    image = image_of(run, run.args[0])
    data = _input(run)
    return _set(run, "image", lambda: run.store.set_image_big_data(image.id, run.args[1], data))


# -- containers ----------------------------------------------------------------------------------


def get_container_data(run: Run) -> int:
    """``get-container-data``."""
    container, key = container_of(run, run.args[0]), run.args[1]

    def read() -> bytes:
        try:
            return run.store.container_big_data(container.id, key)
        except BigDataUnknown:
            from store.bigdata import file_name

            path = run.store.table_directory("containers") / container.id / file_name(key)
            run.fail(f"open {path}: no such file or directory")

    return _output(run, read)


def get_container_data_size(run: Run) -> int:
    """``get-container-data-size``."""
    container = container_of(run, run.args[0])
    return _size(run, lambda: run.store.container_big_data_size(container.id, run.args[1]))


def get_container_data_digest(run: Run) -> int:
    """``get-container-data-digest``."""
    container = container_of(run, run.args[0])
    return _digest(run, lambda: run.store.container_big_data_digest(container.id, run.args[1]))


def set_container_data(run: Run) -> int:
    """``set-container-data``."""
    container = container_of(run, run.args[0])
    data = _input(run)
    return _set(run, "container", lambda: run.store.set_container_big_data(container.id, run.args[1], data))


def get_container_dir(run: Run) -> int:
    """``get-container-dir``."""
    run.say(f"{run.store.container_directory(container_of(run, run.args[0]).id)}\n")
    return 0


def get_container_run_dir(run: Run) -> int:
    """``get-container-run-dir``."""
    run.say(f"{run.store.container_run_directory(container_of(run, run.args[0]).id)}\n")
    return 0


# -- layers --------------------------------------------------------------------------------------


def get_layer_data(run: Run) -> int:
    """``get-layer-data``."""
    layer, key = layer_of(run, run.args[0]), run.args[1]

    def read() -> bytes:
        try:
            return run.store.layer_big_data(layer.id, key)
        except BigDataUnknown as error:
            run.fail(f'locating item named "{key}" for layer with ID "{layer.id}": {error.original}')

    return _output(run, read)


def set_layer_data(run: Run) -> int:
    """``set-layer-data``."""
    layer = layer_of(run, run.args[0])
    data = _input(run)
    return _set(run, "layer", lambda: run.store.set_layer_big_data(layer.id, run.args[1], data))


# -- of all kinds --------------------------------------------------------------------------------


def _size(run: Run, read: Callable[[], int]) -> int:
    try:
        run.say(f"{read()}\n")
    except BadBigDataKey:
        run.fail(SizeUnknown.original)
    return 0


def _digest(run: Run, read: Callable[[], str]) -> int:
    try:
        run.say(f"{read()}\n")
    except BadBigDataKey:
        run.fail(DigestUnknown.original)
    return 0


def _set(run: Run, kind: str, write: Callable[[], None]) -> int:
    if not run.args[1]:
        run.fail(f"can't set empty name for {kind} big data item: {BadBigDataKey.original}")
    try:
        write()
    except BadBigDataKey as error:
        run.fail(str(error))
    return 0


def set_metadata(run: Run) -> int:
    """``set-metadata``."""
    text, path = run.text("metadata"), run.text("metadata-file")
    if not text and not path:
        run.fail("no new metadata provided")
    if path:
        text = read_file(run, path).decode("utf-8", "surrogateescape")
    run.store.set_metadata(run.args[0], text)
    return 0


def add_names(run: Run) -> int:
    """``add-names``: put names after those the object has."""
    return _names(run, lambda key: run.store.add_names(key, run.texts("name"), last=True))


def set_names(run: Run) -> int:
    """``set-names``: give the object exactly these names."""
    return _names(run, lambda key: run.store.set_names(key, run.texts("name")))


def _names(run: Run, change: Callable[[str], None]) -> int:
    try:
        record = run.store.object_of(run.args[0])
    except NotAnID:
        run.fail(LayerUnknown.original)
    change(record.id)
    if run.json:
        run.dump(run.store.names(record.id) or None)
    return 0
