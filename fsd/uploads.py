"""Files people copy into the tree: layer archives, image archives, big data.

What is written goes to an unnamed file on the store's filesystem, and is put to use when the file is
closed (:mod:`fsd.opened`). Where that happens in the middle, because another process than the one that
opened it closes its copy of the descriptor, and that cannot be seen, the work is done with what is there,
most often fails, and is done again with everything. A failure leaves nothing behind.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from fsd.contents import Sink
from store.archive_files import Window
from store.archives import load_archive
from store.blobs import unnamed_file
from store.refill import check_refillable, refill_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.site import LayerSubject, Site

BIG_DATA_MAX = 64 << 20
"""Most bytes of a big data item that is copied in; they are kept in memory once."""
LINGER_SECONDS = 60.0
"""How long the name of a finished import still answers, for tools that rename or touch what they wrote."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """One file on its way in; ``doing`` is receiving, applying, done or failed."""

    what: str
    bytes: int = 0
    doing: str = "receiving"
    ended: float | None = None
    """When it ended, on the monotonic clock; of one that has not begun yet, when it got its name."""


class Uploads:
    """What is on its way into one store, for people to look at. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[Progress] = []
        self._named: dict[str, Progress] = {}

    def begin(self, progress: Progress) -> None:
        """Show an upload from now on."""
        with self._lock:
            progress.ended = None
            self._active.append(progress)

    def end(self, progress: Progress) -> None:
        """Show it no longer."""
        with self._lock:
            if progress in self._active:
                self._active.remove(progress)

    def active(self) -> list[Progress]:
        """The uploads under way, oldest first."""
        with self._lock:
            return list(self._active)

    # -- names in images/.import -----------------------------------------------------------------

    def name(self, name: str) -> Progress:
        """Make or renew the import ``name``."""
        with self._lock:
            self._named[name] = Progress(what=f"images/.import/{name}", ended=time.monotonic())
            return self._named[name]

    def named(self, name: str) -> Progress | None:
        """The import of that name, until a minute after its end, or for a minute if it never begins."""
        with self._lock:
            self._sweep()
            return self._named.get(name)

    def names(self) -> list[str]:
        """Imports under way."""
        with self._lock:
            return [name for name, progress in self._named.items() if progress.ended is None]

    def rename(self, old: str, new: str) -> None:
        """Give an import another name; it goes on as it was. ``KeyError``."""
        with self._lock:
            self._named[new] = self._named.pop(old)

    def forget(self, name: str) -> None:
        """Drop the name; what was loaded stays. ``KeyError``."""
        with self._lock:
            del self._named[name]

    def _sweep(self) -> None:
        now = time.monotonic()
        for name, progress in list(self._named.items()):
            if progress.ended is not None and now - progress.ended > LINGER_SECONDS:
                del self._named[name]


class Upload(Sink):
    """Keeps what is written until it is applied, and again until the file is closed.

    Args:
        progress: what to show; its ``bytes`` and ``doing`` are kept up to date.
        largest: most bytes; more fail with EFBIG.
    """

    def __init__(self, site: Site, progress: Progress, largest: int | None = None) -> None:
        self.site = site
        self.progress = progress
        self._largest = largest
        self._held = ExitStack()
        self._file = self._held.enter_context(unnamed_file(site.store.graphroot))
        site.uploads.begin(progress)

    def write_at(self, offset: int, data: bytes) -> None:
        """Keep ``data``; ``EFBIG``, ``ENOSPC``."""
        if self._largest is not None and offset + len(data) > self._largest:
            raise OSError(errno.EFBIG, f"at most {self._largest} bytes can be stored here")
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        self.progress.bytes = max(self.progress.bytes, offset)
        self.progress.doing = "receiving"

    def truncate(self, size: int) -> None:
        """Keep the first ``size`` bytes."""
        os.ftruncate(self._file.fileno(), size)
        self.progress.bytes = size

    def apply(self) -> None:
        """Put the bytes to use."""
        self.progress.doing = "applying"
        try:
            self.use(self._reader())
        except BaseException:
            self.progress.doing = "failed"
            raise
        self.progress.doing = "done"

    @abstractmethod
    def use(self, archive: BinaryIO) -> None:
        """Do with the complete file what it was copied for."""

    def close(self) -> None:
        """Give the file's space back."""
        self.progress.ended = time.monotonic()
        self.site.uploads.end(self.progress)
        self._held.close()

    def _reader(self) -> BinaryIO:
        """The bytes so far, from the start; does not move when more is written."""
        size = os.fstat(self._file.fileno()).st_size
        return cast("BinaryIO", io.BufferedReader(Window(self._file, 0, size), 1 << 20))


class LayerUpload(Upload):
    """A layer archive for a layer that was just made (``cp layer.tar layers/N/diff.tar``)."""

    def __init__(self, layer: LayerSubject) -> None:
        check_refillable(layer.site.store, layer.id)
        super().__init__(layer.site, Progress(what=f"{layer.path}/diff.tar"))
        self._layer_id = layer.id
        self._applied = ""

    def use(self, archive: BinaryIO) -> None:
        """Unpack it into the layer; what this very copy put there before goes."""
        store = self.site.store
        self._applied = refill_layer(store, self._layer_id, archive, digest=self._applied).diff_digest


class ImageUpload(Upload):
    """A docker-archive or oci-archive (``cp image.tar images/.import/ANY``)."""

    def use(self, archive: BinaryIO) -> None:
        """Load its images under their own names."""
        load_archive(self.site.store, archive, state=self.site.history.state)


class BytesUpload(Upload):
    """A small file, handed over whole."""

    def __init__(self, site: Site, what: str, store: Callable[[bytes], object]) -> None:
        super().__init__(site, Progress(what=what), BIG_DATA_MAX)
        self._store = store

    def use(self, archive: BinaryIO) -> None:
        """Hand it over."""
        self._store(archive.read())
