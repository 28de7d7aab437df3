"""Names, metadata, big data and private directories of layers, images and containers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from store import bigdata
from store.durable import write_atomic
from store.errors import BadName, BigDataUnknown, DigestUnknown, NotAnID, SizeUnknown, StoreReadOnly
from store.names import dedupe
from store.queries import Queries
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from store.options import DigestManifest
    from store.table import Draft

_USERDATA: Final = "userdata"
NewNames = Callable[[tuple[str, ...]], Iterable[str]]


class Attributes(Queries):
    """Methods of :class:`store.store.Store` that change or read one object's attributes."""

    # -- names -----------------------------------------------------------------------------------

    def set_names(self, key: str, names: Iterable[str]) -> None:
        """Give a layer, image or container exactly these names; ``SetNames``.

        A name that another object of the kind has moves to this one.

        Raises:
            NotAnID, BadName, StoreReadOnly, LockTimeout
        """
        wanted = list(names)
        self._rename(key, lambda _: wanted)

    def add_names(self, key: str, names: Iterable[str], *, last: bool = False) -> None:
        """Put names before those the object has; ``AddNames``. Raises as :meth:`set_names`.

        Args:
            last: put them after those it has, as ``podman tag`` does.
        """
        wanted = list(names)
        self._rename(key, lambda old: [*old, *wanted] if last else [*wanted, *old])

    def remove_names(self, key: str, names: Iterable[str]) -> None:
        """Take names away; ``RemoveNames``. Raises as :meth:`set_names`."""
        unwanted = set(names)
        self._rename(key, lambda old: [name for name in old if name not in unwanted])

    def _rename(self, key: str, change: NewNames) -> None:
        record = self.object_of(key)
        if isinstance(record, Layer):
            with self.transaction(layers="w") as tx:
                _move_names(tx.layers, self._current(tx.layers, record), change)
        elif isinstance(record, Image):
            with self.transaction(images="w") as tx:
                _move_names(tx.images, self._current(tx.images, record), change)
        else:
            with self.transaction(containers="w") as tx:
                _move_names(tx.containers, self._current(tx.containers, record), change)

    def _current(self, draft: Draft[Any], record: Any) -> Any:
        """The record as it is now that the table is locked.

        Raises:
            NotAnID: it went meanwhile; StoreReadOnly: it is in an additional store.
        """
        found = draft.get(record.id)
        if found is None and record.read_only:
            raise StoreReadOnly(f"{record.id} belongs to a read-only store, so it cannot be changed")
        if found is None:
            raise NotAnID(f"{record.id} was removed meanwhile")
        return found

    # -- metadata --------------------------------------------------------------------------------

    def set_metadata(self, key: str, text: str) -> None:
        """Replace the caller's text of a layer, image or container; ``SetMetadata``.

        Raises:
            NotAnID, StoreReadOnly, LockTimeout
        """
        record = self.object_of(key)
        if isinstance(record, Layer):
            with self.transaction(layers="w") as tx:
                tx.layers.put(replace(self._current(tx.layers, record), metadata=text))
        elif isinstance(record, Image):
            with self.transaction(images="w") as tx:
                tx.images.put(replace(self._current(tx.images, record), metadata=text))
        else:
            with self.transaction(containers="w") as tx:
                tx.containers.put(replace(self._current(tx.containers, record), metadata=text))

    # -- big data --------------------------------------------------------------------------------

    def _directory_of(self, record: Layer | Image | Container) -> Path:
        """Where an object's big data is, also in an additional store."""
        if not record.read_only or isinstance(record, Container):
            return self.data_directory(record)
        if isinstance(record, Layer):
            homes = [tables.layers.directory for tables in (self.tables, *self.additional)]
        else:
            homes = [tables.images.directory for tables in (self.tables, *self.additional)]
        return next((home for home in homes if (home / record.id).is_dir()), homes[0]) / record.id

    def _read_item(self, record: Layer | Image | Container, key: str) -> bytes:
        if key not in record.big_data_names:
            raise BigDataUnknown(f"{record.id} has no big data item {key!r}")
        return bigdata.read(self._directory_of(record), key)

    def _measured_item(
        self, record: Image | Container, key: str, error: type[SizeUnknown | DigestUnknown]
    ) -> bytes:
        """An item whose size or digest the record lacks; raises ``error`` if there is none."""
        bigdata.file_name(key)
        try:
            return bigdata.read(self._directory_of(record), key)
        except BigDataUnknown:
            what = "size" if error is SizeUnknown else "digest"
            raise error(
                f"the {what} of big data item {key!r} of {record.id} is not known: no such item"
            ) from None

    def list_image_big_data(self, key: str) -> list[str]:
        """Keys of an image's items; ``ListImageBigData``; ``ImageUnknown``."""
        return list(self.image(key).big_data_names)

    def image_big_data(self, image: str, key: str) -> bytes:
        """One item of an image; ``ImageBigData``.

        Raises:
            ImageUnknown, BigDataUnknown, BadBigDataKey
        """
        return self._read_item(self.image(image), key)

    def image_big_data_size(self, image: str, key: str) -> int:
        """Bytes of one item; ``ImageBigDataSize``.

        Raises:
            ImageUnknown; BadBigDataKey; SizeUnknown: there is no such item.
        """
        record = self.image(image)
        size = record.big_data_sizes.get(key)
        return len(self._measured_item(record, key, SizeUnknown)) if size is None else size

    def image_big_data_digest(self, image: str, key: str) -> str:
        """Digest of one item; ``ImageBigDataDigest``.

        Raises:
            ImageUnknown; BadBigDataKey; DigestUnknown: there is no such item, or it is a malformed manifest.
        """
        record = self.image(image)
        digest = record.big_data_digests.get(key)
        if digest is not None:
            return digest
        data = self._measured_item(record, key, DigestUnknown)
        return bigdata.manifest_digest(data) if key.startswith(bigdata.MANIFEST) else bigdata.digest_of(data)

    def set_image_big_data(
        self, image: str, key: str, data: bytes, digest: str | DigestManifest | None = None
    ) -> None:
        """Store one item of an image; ``SetImageBigData``.

        Args:
            digest: of a manifest, when it is not the one :func:`store.bigdata.manifest_digest` gives.

        Raises:
            ImageUnknown, BadBigDataKey, StoreReadOnly, DigestUnknown, OSError
        """
        wanted = self.image(image)
        bigdata.file_name(key)
        with self.transaction(images="w") as tx:
            record: Image = self._current(tx.images, wanted)
            known = digest(data) if callable(digest) else digest or ""
            record = bigdata.with_image_data(record, key, data, known)
            bigdata.write(self.data_directory(record), key, data)
            tx.images.put(record)

    def list_container_big_data(self, key: str) -> list[str]:
        """Keys of a container's items; ``ListContainerBigData``; ``ContainerUnknown``."""
        return list(self.container(key).big_data_names)

    def container_big_data(self, container: str, key: str) -> bytes:
        """One item of a container; ``ContainerBigData``.

        Raises:
            ContainerUnknown, BigDataUnknown, BadBigDataKey
        """
        return self._read_item(self.container(container), key)

    def container_big_data_size(self, container: str, key: str) -> int:
        """Bytes of one item; ``ContainerBigDataSize``.

        Raises:
            ContainerUnknown; BadBigDataKey; SizeUnknown: there is no such item.
        """
        record = self.container(container)
        size = record.big_data_sizes.get(key)
        return len(self._measured_item(record, key, SizeUnknown)) if size is None else size

    def container_big_data_digest(self, container: str, key: str) -> str:
        """Digest of one item; ``ContainerBigDataDigest``.

        Raises:
            ContainerUnknown; BadBigDataKey; DigestUnknown: there is no such item.
        """
        record = self.container(container)
        digest = record.big_data_digests.get(key)
        if digest is not None:
            return digest
        return bigdata.digest_of(self._measured_item(record, key, DigestUnknown))

    def set_container_big_data(self, container: str, key: str, data: bytes) -> None:
        """Store one item of a container; ``SetContainerBigData``.

        Raises:
            ContainerUnknown, BadBigDataKey, OSError
        """
        wanted = self.container(container)
        bigdata.file_name(key)
        with self.transaction(containers="w") as tx:
            record: Container = self._current(tx.containers, wanted)
            bigdata.write(self.data_directory(record), key, data)
            tx.containers.put(bigdata.with_container_data(record, key, data))

    def list_layer_big_data(self, key: str) -> list[str]:
        """Keys of a layer's items; ``ListLayerBigData``; ``LayerUnknown``."""
        return list(self.layer(key).big_data_names)

    def layer_big_data(self, layer: str, key: str) -> bytes:
        """One item of a layer; ``LayerBigData``.

        Raises:
            LayerUnknown, BigDataUnknown, BadBigDataKey
        """
        return self._read_item(self.layer(layer), key)

    def set_layer_big_data(self, layer: str, key: str, data: bytes) -> None:
        """Store one item of a layer; ``SetLayerBigData``.

        Raises:
            LayerUnknown, BadBigDataKey, StoreReadOnly, OSError
        """
        wanted = self.layer(layer)
        bigdata.file_name(key)
        with self.transaction(layers="w") as tx:
            record: Layer = self._current(tx.layers, wanted)
            bigdata.write(self.data_directory(record), key, data)
            tx.layers.put(replace(record, big_data_names=dedupe([*record.big_data_names, key])))

    # -- private directories ---------------------------------------------------------------------

    def container_directory(self, key: str) -> Path:
        """The container's persistent private directory, made on first use; ``ContainerDirectory``.

        Raises:
            ContainerUnknown, StoreReadOnly, OSError
        """
        return self._private(self.data_directory(self.container(key)))

    def container_run_directory(self, key: str) -> Path:
        """The container's private directory that a reboot empties; ``ContainerRunDirectory``.

        Raises:
            ContainerUnknown, OSError
        """
        return self._private(self.run_directory("containers") / self.container(key).id)

    def image_directory(self, key: str) -> Path:
        """The image's persistent private directory; ``ImageDirectory``.

        Raises:
            ImageUnknown, StoreReadOnly, OSError
        """
        return self._private(self.data_directory(self._own_image(key)))

    def image_run_directory(self, key: str) -> Path:
        """The image's private directory that a reboot empties; ``ImageRunDirectory``.

        Raises:
            ImageUnknown, StoreReadOnly, OSError
        """
        return self._private(self.run_directory("images") / self._own_image(key).id)

    def _own_image(self, key: str) -> Image:
        image = self.image(key)
        if image.read_only:
            raise StoreReadOnly(
                f"image {image.id} belongs to a read-only store, and has no private directory"
            )
        return image

    def _private(self, parent: Path) -> Path:
        path = parent / _USERDATA
        if not path.is_dir() and self.graphroot in path.parents:
            self.check_writable()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def set_container_directory_file(self, key: str, file: str, data: bytes) -> None:
        """Write a file of the private directory; ``SetContainerDirectoryFile``.

        Args:
            file: path inside the directory, without ``..``.

        Raises:
            ContainerUnknown, BadName, StoreReadOnly, OSError
        """
        self.check_writable()
        _write_inside(self.container_directory(key), file, data)

    def from_container_directory(self, key: str, file: str) -> bytes:
        """Read a file of the private directory; ``FromContainerDirectory``.

        Raises:
            ContainerUnknown, BadName, OSError
        """
        return _inside(self.container_directory(key), file).read_bytes()

    def set_container_run_directory_file(self, key: str, file: str, data: bytes) -> None:
        """Write a file of the run directory; ``SetContainerRunDirectoryFile``.

        Raises:
            ContainerUnknown, BadName, OSError
        """
        _write_inside(self.container_run_directory(key), file, data)

    def from_container_run_directory(self, key: str, file: str) -> bytes:
        """Read a file of the run directory; ``FromContainerRunDirectory``.

        Raises:
            ContainerUnknown, BadName, OSError
        """
        return _inside(self.container_run_directory(key), file).read_bytes()


def _inside(directory: Path, file: str) -> Path:
    path = Path(file)
    if not file or path.is_absolute() or ".." in path.parts or "\0" in file:
        raise BadName(f"{file!r} is no path inside the private directory")
    return directory / path


def _write_inside(directory: Path, file: str, data: bytes) -> None:
    path = _inside(directory, file)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, data)


def _move_names(draft: Draft[Any], record: Any, change: NewNames) -> None:
    """Give ``record`` its new names, and take them from whoever had them."""
    names = dedupe(change(record.names))
    if "" in names:
        raise BadName("a name cannot be empty")
    view = draft.view
    for owner in {o.id: o for name in names if (o := view.by_name(name)) is not None}.values():
        if owner.id != record.id:
            draft.put(replace(owner, names=tuple(n for n in owner.names if n not in names)))
    changed = replace(record, names=names)
    if isinstance(changed, Image):
        changed = replace(changed, names_history=dedupe([*reversed(names), *changed.names_history]))
    draft.put(changed)
