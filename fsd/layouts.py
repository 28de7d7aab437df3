"""The files an image is made of for other tools, kept as long as the image stays as it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from store import codec
from store.errors import StoreError
from store.layout import REF_NAME, docker_archive, image_blobs, oci_layout
from store.virtual import of_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.store import Store
    from store.virtual import VirtualFile

KEPT = 64
"""Images whose files are kept in mind; each costs a few kilobytes."""
ARCHIVE = "image.tar"
INDEX = "index.json"


class Layouts:
    """The files of images, made once for each state of an image. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, tuple[Any, Mapping[str, VirtualFile]]] = OrderedDict()
        self._lock = threading.Lock()

    def repository(self, name: str) -> Mapping[str, VirtualFile]:
        """One OCI image layout with every image of the repository ``name``, by path.

        Tools read ``oci:DIRECTORY:TAG`` up to the first colon as a directory, so that they look for this
        one when people name an image's own ``name:tag/oci``; hence each is in it as ``TAG``, ``TAG/oci`` and
        ``TAG/oci:TAG``.
        Images that cannot be packed are left out.
        """
        files: dict[str, VirtualFile] = {}
        manifests: list[Any] = []
        for tag, image_id in self._tags(name).items():
            with suppress(StoreError):
                layout = self.files(image_id)
                (entry,) = codec.loads(layout[INDEX].read())["manifests"]
                for ref in (tag, f"{tag}/oci", f"{tag}/oci:{tag}"):
                    annotations = {**entry.get("annotations", {}), REF_NAME: ref}
                    manifests.append({**entry, "annotations": annotations})
                files |= {path: file for path, file in layout.items() if path != ARCHIVE}
        index = {"schemaVersion": 2, "manifests": manifests}
        return files | {INDEX: of_bytes(codec.dumps(index, sort_keys=False).encode())} if files else files

    def _tags(self, repository: str) -> dict[str, str]:
        """Image IDs by tag."""
        start = f"{repository}:"
        return {
            name.removeprefix(start): image.id
            for image in self._store.catalog().images
            for name in image.names
            if name.startswith(start) and "@" not in name
        }

    def has_repository(self, name: str) -> bool:
        """Whether an image has a name in the repository."""
        return bool(self._tags(name))

    def files(self, image_id: str) -> Mapping[str, VirtualFile]:
        """The OCI image layout's files by path, and the docker-archive as :data:`ARCHIVE`.

        Raises:
            ImageUnknown, BigDataUnknown, BadRecord, SizeUnknown
        """
        catalog = self._store.catalog()
        image = catalog.image(image_id)
        state = (image, catalog.chain(image.layer) if image and image.layer else ())
        with self._lock:
            known = self._known.get(image_id)
            if known is not None and known[0] == state:
                self._known.move_to_end(image_id)
                return known[1]
        blobs = image_blobs(self._store, image_id)
        archive = docker_archive(self._store, image_id, blobs)
        files = {**oci_layout(self._store, image_id, blobs), ARCHIVE: archive}
        with self._lock:
            self._known[image_id] = state, files
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return files
