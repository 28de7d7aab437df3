"""Layers served by an additional layer store, such as stargz-store's (FORMAT 8.4).

Such a store is a filesystem that shows a layer under ``<store>/[base64(reference)/]<digest>/`` when asked for
it: ``diff`` is its tree, ``info`` its record as JSON, ``blob`` its archive. Creating ``use`` there counts a
user and removing the digest's directory takes one away; the store answers both with ENOENT.
"""

from __future__ import annotations

import base64
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.overlay_links import LayerPlace
    from drivers.overlay_options import LayerStore

RECORD = "additionallayer"


@dataclass(frozen=True, slots=True)
class AdditionalLayer:
    """A layer a store has and keeps for us until :meth:`release`; ``path`` is its directory there."""

    path: Path

    def info(self) -> bytes:
        """The layer's record, JSON as in ``layers.json``."""
        return (self.path / "info").read_bytes()

    def blob(self) -> BinaryIO:
        """The layer's archive as it was distributed."""
        return (self.path / "blob").open("rb")

    def use(self) -> None:
        """Count one more user of the layer."""
        try:
            fd = os.open(self.path / "use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return
        os.close(fd)

    def release(self) -> None:
        """Count one user less."""
        try:
            os.rmdir(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def find_additional_layer(
    stores: tuple[LayerStore, ...], digest: str, reference: str
) -> AdditionalLayer | None:
    """The layer ``digest`` (``sha256:…``) of image ``reference`` in the first store that has it."""
    for store in stores:
        path = store.path
        if store.by_reference:
            path /= base64.b64encode(reference.encode()).decode("ascii")
        if (path / digest / "diff").is_dir():
            return AdditionalLayer(path / digest)
    return None


def refer_to(layer: AdditionalLayer, directory: Path) -> None:
    """Let the overlay layer in ``directory`` have its content in the store; its own ``diff`` is empty."""
    (directory / "diff").rmdir()
    (directory / "diff").symlink_to(layer.path / "diff")
    (directory / RECORD).write_text(str(layer.path))
    (directory / RECORD).chmod(0o644)


def additional_layer_path(place: LayerPlace) -> str | None:
    """Where the store has a layer of ours; ``None`` if its content is our own."""
    try:
        return (place.directory / RECORD).read_text().strip()
    except FileNotFoundError:
        return None
