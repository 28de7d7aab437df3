"""What layers change against their parents, layer archives out, and sizes."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from drivers.base import Change, Compression
from drivers.errors import IntegrityError
from drivers.idmap import IDMappings
from store.attributes import Attributes
from store.errors import LayerUnknown, SizeUnknown
from store.mounts import Mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.records import Layer


class Diffs(Mounts, Attributes):
    """Difference methods of :class:`store.store.Store`.

    Arguments are keys of layers, or of containers, whose layer is meant; ``from_`` empty or unknown is
    the layer's parent, as in containers/storage.
    """

    def changes(self, to: str, from_: str = "") -> list[Change]:
        """What layer ``to`` changes against ``from_``, sorted by path; ``Changes``.

        Raises:
            LayerUnknown, LockTimeout, OSError
        """
        layer, other = self._pair(to, from_)
        return self.driver.changes(layer.id, *self._against(layer, other))

    def diff_size(self, to: str, from_: str = "") -> int:
        """Bytes of file content layer ``to`` adds to ``from_``; ``DiffSize``. Raises as :meth:`changes`.

        The size recorded when the layer was made from an archive is used when it applies.
        """
        layer, other = self._pair(to, from_)
        if layer.size >= 0 and (other.id if other else "") == layer.parent:
            return layer.size
        return self.driver.diff_size(layer.id, *self._against(layer, other))

    def computed_diff_size(self, to: str, from_: str = "") -> int:
        """:meth:`diff_size`, counted anew: the size of an archive includes its headers, this does not."""
        layer, other = self._pair(to, from_)
        return self.driver.diff_size(layer.id, *self._against(layer, other))

    def diff(self, to: str, from_: str = "", compression: Compression | None = None) -> BinaryIO:
        """Layer ``to`` as a layer archive; ``Diff``.

        Against its own parent a layer that was made from an archive gives that archive's bytes again.

        Args:
            compression: of the stream; that of the original archive when not given.

        Returns:
            a stream to be read once; close it when done. No lock is held while it is read.

        Raises:
            LayerUnknown, OSError; while reading: IntegrityError if the layer's files were changed, or the
            layer was removed and its files were read from where they live.
        """
        layer, other = self._pair(to, from_)
        exact = (other.id if other else "") == layer.parent
        stream = self._exact(layer) if exact else None
        if stream is None:
            stream = self._live(layer, self.driver.diff(layer.id, *self._against(layer, other)))
        wanted = Compression(layer.compression) if compression is None else compression
        if wanted is Compression.NONE:
            return stream
        from drivers.compress import chunks_of, compress, reader_of

        return cast("BinaryIO", reader_of(compress(wanted, chunks_of(stream)), stream.close))

    def _exact(self, layer: Layer) -> BinaryIO | None:
        """The archive a layer was made from; ``None`` when its tar-split was not kept."""
        path = self.find_tar_split(layer.id)
        if not path:
            return None
        import gzip  # these are slow, and only archives need them

        from drivers import tarsplit
        from drivers.compress import chunks_of, reader_of

        with ExitStack() as stack:
            lines = stack.enter_context(gzip.open(path, "rb"))
            root = stack.enter_context(self.driver.mounted(layer.id))
            stream = tarsplit.assemble(cast("BinaryIO", io.BufferedReader(lines)), root)
            stack.callback(stream.close)
            return cast("BinaryIO", reader_of(chunks_of(stream), stack.pop_all().close))

    def _live(self, layer: Layer, stream: BinaryIO) -> BinaryIO:
        """The archive of files that may go while it is read: what has gone is left out, as in the original.

        A removal takes the record first, so that one which is there at the end was there all the time.
        """
        if self.driver.capabilities.snapshots:
            return stream
        from drivers.compress import chunks_of, reader_of

        def whole() -> Iterator[bytes]:
            yield from chunks_of(stream)
            found = self.catalog().layer(layer.id)
            if found is None or found.incomplete:
                raise IntegrityError(f"layer {layer.id} was removed while it was read")

        return cast("BinaryIO", reader_of(whole(), stream.close))

    def _pair(self, to: str, from_: str) -> tuple[Layer, Layer | None]:
        """The two layers of a comparison."""
        layer = self.layer_of(to)
        if from_:
            try:
                return layer, self.layer_of(from_)
            except LayerUnknown:
                pass
        return layer, self.layer(layer.parent) if layer.parent else None

    def layer_of(self, key: str) -> Layer:
        """The layer of that key, or of the container of that key; ``LayerUnknown``."""
        container = self._container(key)
        return self.layer(container.layer if container is not None else key)

    def _against(self, layer: Layer, other: Layer | None) -> tuple[str | None, IDMappings, IDMappings]:
        if other is None:
            return None, layer.mappings, IDMappings()
        return other.id, layer.mappings, other.mappings

    # -- sizes -----------------------------------------------------------------------------------

    def layer_size(self, key: str) -> int:
        """Bytes of the layer's uncompressed archive, or -1 if it was not made from one; ``LayerSize``.

        Raises:
            LayerUnknown
        """
        return self.layer(key).size

    def image_size(self, key: str) -> int:
        """Bytes of an image: its layers' archives and its own big data; ``ImageSize``.

        Raises:
            ImageUnknown, LayerUnknown, OSError
        """
        image = self.image(key)
        catalog = self.catalog()
        layers = {
            layer.id: layer for top in (image.layer, *image.mapped_layers) for layer in catalog.chain(top)
        }
        if image.layer and image.layer not in layers:
            raise LayerUnknown(f"the top layer {image.layer} of image {image.id} does not exist")
        size = sum(self.image_big_data_size(image.id, name) for name in image.big_data_names)
        for layer in layers.values():
            size += layer.size if layer.size >= 0 else self.diff_size(layer.id)
        return size

    def container_size(self, key: str) -> int:
        """Bytes of a container: what it changed, its big data and private directories; ``ContainerSize``.

        Raises:
            ContainerUnknown, SizeUnknown, OSError
        """
        container = self.container(key)
        try:
            size = self.computed_diff_size(container.layer)
        except LayerUnknown:
            raise SizeUnknown(f"the layer of container {container.id} does not exist") from None
        size += sum(self.container_big_data_size(container.id, name) for name in container.big_data_names)
        for home in (self.table_directory("containers"), self.run_directory("containers")):
            size += _tree_size(home / container.id / "userdata")
        return size


def _tree_size(path: Path) -> int:
    """Bytes of all files below ``path``; 0 if there is nothing."""
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, files in os.walk(path) for name in files)
