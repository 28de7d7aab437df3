"""Opening a store, its tables, and transactions over several of them in the one legal lock order."""

from __future__ import annotations

import errno
import glob
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from drivers import driver_names, open_driver, prior_drivers
from drivers.errors import BadLayerID
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store.catalog import Catalog
from store.config import StoreOptions, load_options
from store.containers import ContainerDraft, ContainerTable
from store.durable import file_state, remove_tree
from store.errors import BadValue, IncompleteOptions, LockTimeout, StoreReadOnly
from store.images import ImageDraft, ImageTable
from store.layers import LayerDraft, LayerTable, LayerView, MountView
from store.lockfile import LockFile
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from drivers.base import Driver
    from drivers.idmap import IDMappings

Access = Literal["r", "w"] | None
T = TypeVar("T")

MODE_PRIVATE: Final = 0o700
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Tables:
    """The three tables of one store."""

    layers: LayerTable
    images: ImageTable
    containers: ContainerTable


class Transaction:
    """Tables under their locks. Only those asked for may be touched; the others raise ``AttributeError``."""

    layers: LayerDraft
    images: ImageDraft
    containers: ContainerDraft


class StoreCore:
    """What every part of the store's API stands on; use :class:`store.store.Store`.

    Args:
        options: where the store is and which driver it uses; read from the configuration when not given.
        lazy: open the driver when it is first needed, so that who only looks does not pay for it.

    Attributes:
        graphroot, runroot: persistent state, and state lost at reboot.
        split: the split image store, if it can be written: images and their layers are made there.
        tables: the primary store's tables.
        read_only: the store's directories cannot be written.

    Raises:
        IncompleteOptions, LockTimeout, OSError, and what :func:`drivers.open_driver` raises.
    """

    def __init__(self, options: StoreOptions | None = None, *, lazy: bool = False) -> None:
        self.options = options if options is not None else load_options()
        if not self.options.graphroot or not self.options.runroot:
            raise IncompleteOptions("a store needs both a graphroot and a runroot")
        self.graphroot = Path(os.path.abspath(self.options.graphroot))
        self.runroot = Path(os.path.abspath(self.options.runroot))
        self.read_only = not self._prepare_directories(self.graphroot, self.runroot)
        self.split = self._writable_split()
        self.storage_lock = LockFile.get(self.graphroot / "storage.lock", read_only=self.read_only)
        self.userns_lock = LockFile.get(self.graphroot / "userns.lock", read_only=self.read_only)
        self._driver: Driver | None = None
        self._driver_guard = threading.Lock()
        name = self._likely_driver() if lazy else ""
        self.driver_name = name or self.driver.name
        self.tables = self._open_tables()
        self.additional = tuple(self.additional_tables(self.options))
        self._catalog: Catalog | None = None
        self._held = threading.local()
        self.clean_incomplete(wait=False)

    # -- opening ---------------------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """The graph driver; opened, if it is not yet, under the store's lock."""
        if self._driver is None:
            with self._driver_guard, self._opening():
                self._driver = self._driver or open_driver(
                    self.graphroot,
                    self.options.driver,
                    self.driver_texts(self.options),
                    self.options.driver_priority,
                )
        return self._driver

    def driver_texts(self, options: StoreOptions) -> tuple[str, ...]:
        """What a driver is told of a store's options: ``<driver>.<key>=<value>`` each."""
        given = options.options_for_driver(writable_split=self.split is not None)
        return (*given, f"overlay.runroot={self.runroot}")

    def _writable_split(self) -> Path | None:
        path = self.image_store
        return path if path is not None and not self.read_only and self._prepare_directories(path) else None

    def _likely_driver(self) -> str:
        """The name of the driver that will be opened, if that is certain without opening it."""
        name = self.options.driver
        if name in driver_names():
            return name
        prior = () if name else prior_drivers(self.graphroot)
        return prior[0] if len(prior) == 1 and not self.options.driver_priority and prior[0] != "vfs" else ""

    @contextmanager
    def _opening(self) -> Iterator[None]:
        if self.read_only:
            yield
            return
        self.userns_lock.touch()
        with self.storage_lock.writing(self.options.lock_timeout):
            yield

    def _prepare_directories(self, *directories: Path) -> bool:
        """Make directories of mode 0700; tells whether they can be written."""
        for directory in directories:
            try:
                directory.mkdir(mode=MODE_PRIVATE, parents=True, exist_ok=True)
            except OSError as error:
                if error.errno not in _READ_ONLY or not directory.is_dir():
                    raise
            if not os.access(directory, os.W_OK):
                return False
        return True

    @property
    def image_store(self) -> Path | None:
        """The split image store, if there is one; ``ImageStore``."""
        return Path(self.options.split) if self.options.split else None

    @property
    def transient_store(self) -> bool:
        """Whether a reboot empties the store of its containers; ``TransientStore``."""
        return self.options.transient_store

    def table_directory(self, kind: str) -> Path:
        """``<graphroot>/<driver>-<kind>``; ``kind`` is ``layers``, ``images`` or ``containers``."""
        return self.graphroot / f"{self.driver_name}-{kind}"

    def split_directory(self, kind: str) -> Path | None:
        """``<image store>/<driver>-<kind>``, if layers or images are made there."""
        if self.split is None or kind == "containers":
            return None
        return self.split / f"{self.driver_name}-{kind}"

    def table_directories(self, kind: str) -> list[Path]:
        """Where a table's files and the data of its objects are: in the graphroot, and in the image store."""
        split = self.split_directory(kind)
        return [self.table_directory(kind), *([] if split is None else [split])]

    def run_directory(self, kind: str) -> Path:
        """``<runroot>/<driver>-<kind>``."""
        return self.runroot / f"{self.driver_name}-{kind}"

    def _open_tables(self) -> Tables:
        kinds = ("layers", "images", "containers")
        if not self.read_only:
            self._prepare_directories(
                *(home for kind in kinds for home in self.table_directories(kind)),
                self.run_directory("layers"),
            )
        transient = self.run_directory("containers") if self.transient_store else None
        if transient is not None and not self.read_only:
            self._prepare_directories(transient)
        tables = Tables(
            LayerTable(
                self.table_directory("layers"),
                self.run_directory("layers"),
                read_only=self.read_only,
                transient=self.transient_store,
                image_directory=self.split_directory("layers"),
            ),
            ImageTable(
                self.table_directory("images"),
                read_only=self.read_only,
                image_directory=self.split_directory("images"),
            ),
            ContainerTable(self.table_directory("containers"), read_only=self.read_only, transient=transient),
        )
        if not self.read_only:
            for lock in (*tables.layers.locks, *tables.images.locks, *tables.containers.locks):
                if not lock.path.exists():
                    lock.touch()
        return tables

    def additional_tables(self, options: StoreOptions) -> Iterator[Tables]:
        """The tables of the read-only stores that ``options`` name, in order of precedence."""
        configured = [Path(path) for path in options.additional_image_stores]
        mentioned = any("imagestore=" in option for option in options.driver_options)
        split = [] if self.image_store is None else [self.image_store]
        others = self.driver.additional_image_stores() if mentioned else ()
        for root in dict.fromkeys([*split, *others, *configured]):
            if root == self.split:
                continue
            name = self.driver_name
            run = root / f"{name}-layers"
            yield Tables(
                LayerTable(root / f"{name}-layers", run, read_only=True),
                ImageTable(root / f"{name}-images", read_only=True),
                ContainerTable(root / f"{name}-containers", read_only=True),
            )

    def close(self) -> None:
        """Forget cached state; the store stays as it is for others."""
        self._catalog = None

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- reading without locks -------------------------------------------------------------------

    def catalog(self) -> Catalog:
        """All layers, images and containers now. Takes no lock; a stat per table file if nothing changed."""
        held: Catalog | None = getattr(self._held, "catalog", None)
        if held is not None:
            return held
        layers = tuple(t.layers.peek() for t in (self.tables, *self.additional))
        images = tuple(t.images.peek() for t in (self.tables, *self.additional))
        fresh = Catalog(layers, images, self.tables.containers.peek(), self.mounts_now())
        if self._catalog is None or self._catalog.stamp != fresh.stamp:
            self._catalog = fresh
        return self._catalog

    @contextmanager
    def held(self) -> Iterator[Catalog]:
        """The catalog as it is now, which this thread goes on seeing inside the block: for looking only."""
        before: Catalog | None = getattr(self._held, "catalog", None)
        found = self._held.catalog = self.catalog()
        try:
            yield found
        finally:
            self._held.catalog = before

    @property
    def saving(self) -> bool:
        """Whether this process is saving a table, whose files are ahead of what :meth:`catalog` shows."""
        tables = self.tables
        return any(table.saving for table in (tables.layers, tables.images, tables.containers))

    def mounts_now(self) -> MountView:
        """The mount counts, without a lock."""
        return self.tables.layers.mounts.peek()

    # -- locking ---------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raise :class:`StoreReadOnly` unless the store's directories can be written."""
        if self.read_only:
            raise StoreReadOnly(f"{self.graphroot} is on read-only media, or belongs to somebody else")

    @contextmanager
    def transaction(
        self, *, layers: Access = None, images: Access = None, containers: Access = None
    ) -> Iterator[Transaction]:
        """Lock tables (``"r"`` shared, ``"w"`` exclusive) in the order of FORMAT 3.6.

        What changed is saved on normal exit, and nothing on an exception. Layers whose creation or
        removal somebody did not finish are removed as soon as the layers are locked exclusively.

        Raises:
            LockTimeout: after ``options.lock_timeout`` seconds; the text names the holder.
            StoreReadOnly, BadRecord
        """
        bound = self.options.lock_timeout
        if "w" in (layers, images, containers):
            self.check_writable()
        tx = Transaction()
        with ExitStack() as stack:
            if layers:
                table = self.tables.layers
                tx.layers = stack.enter_context(
                    table.writing(bound) if layers == "w" else table.reading(bound)
                )
                if layers == "w":
                    self._finish_removals(tx.layers)
            if images:
                image_table = self.tables.images
                tx.images = stack.enter_context(
                    image_table.writing(bound) if images == "w" else image_table.reading(bound)
                )
            if containers:
                container_table = self.tables.containers
                tx.containers = stack.enter_context(
                    container_table.writing(bound) if containers == "w" else container_table.reading(bound)
                )
            yield tx

    def clean_incomplete(self, *, wait: bool = True) -> list[str]:
        """Remove layers flagged incomplete, as containers/storage does when it loads a store.

        Args:
            wait: whether to wait for the lock; a layer flagged by somebody at work is no leftover.

        Returns:
            IDs of the layers that were removed.
        """
        if self.read_only or not self.tables.layers.peek().incomplete:
            return []

        try:
            with self.tables.layers.writing(self.options.lock_timeout if wait else 0.0) as draft:
                return self._finish_removals(draft)
        except LockTimeout:
            if wait:
                raise
            return []

    def _finish_removals(self, draft: LayerDraft) -> list[str]:
        removed = draft.view.incomplete
        for layer_id in removed:
            self.discard_layer(draft, draft.view.by_id[layer_id])
            with suppress(BadLayerID):
                self.driver.path_of(layer_id)
                self.drop_half_written(self.tar_split_path(layer_id))
        return list(removed)

    def drop_half_written(self, path: Path) -> None:
        """Remove what a process that was killed had written of a file; nobody else may be writing it."""
        for left in path.parent.glob(f".tmp-{glob.escape(path.name)}*"):
            left.unlink(missing_ok=True)

    def discard_layer(self, draft: LayerDraft, layer: Layer) -> None:
        """Remove a layer whose record is already flagged incomplete: content, files, record; then save.

        An ID no driver takes has no content and no files: paths made of it would lead elsewhere.
        """
        with suppress(BadLayerID):
            with suppress(DriverLayerUnknown):
                self.driver.remove(layer.id)
            remove_tree(self.tar_split_path(layer.id))
            remove_tree(self.layer_directory(layer.id))
        draft.remove(layer.id)
        draft.flush()

    # -- paths -----------------------------------------------------------------------------------

    def tar_split_path(self, layer_id: str) -> Path:
        """Where a layer's tar-split data is, or would be."""
        return self._layer_file(f"{layer_id}.tar-split.gz")

    def data_directory(self, record: Layer | Image | Container) -> Path:
        """Where the big data of an object of this store is, or would be."""
        if isinstance(record, Layer):
            return self.layer_directory(record.id)
        if isinstance(record, Container):
            return self.table_directory("containers") / record.id
        split = self.split_directory("images") if record.in_image_store else None
        return (split or self.table_directory("images")) / record.id

    def layer_directory(self, layer_id: str) -> Path:
        """Where a layer's big data is, or would be."""
        return self._layer_file(layer_id)

    def _layer_file(self, name: str) -> Path:
        """In the graphroot, as containers/storage has it, unless the image store was a store of its own."""
        path, split = self.tables.layers.directory / name, self.split_directory("layers")
        return split / name if split is not None and not path.exists() and (split / name).exists() else path

    def find_tar_split(self, layer_id: str) -> str:
        """The path of a layer's tar-split data; empty where no store has any."""
        return next((path for path in self._tar_splits(layer_id) if file_state(path).size > 0), "")

    def tar_split_paths(self, layer_id: str) -> list[Path]:
        """Where a layer's tar-split data may be, in all stores."""
        return [Path(path) for path in self._tar_splits(layer_id)]

    def _tar_splits(self, layer_id: str) -> list[str]:
        """These paths as text: listings ask for many, and making a ``Path`` costs more than a stat."""
        split = self.split_directory("layers")
        homes = [self.tables.layers.directory, *([] if split is None else [split])]
        homes += [tables.layers.directory for tables in self.additional]
        return [f"{home}/{layer_id}.tar-split.gz" for home in homes]

    def digest_lock(self, digest: str) -> LockFile:
        """The lock tools take while they fetch the blob of that digest; ``GetDigestLock``.

        Raises:
            BadValue: no digest.
        """
        if not re.fullmatch(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,128}", digest):
            raise BadValue(f"{digest!r} is no digest")
        directory = self.run_directory("locks")
        directory.mkdir(mode=MODE_PRIVATE, parents=True, exist_ok=True)
        return LockFile.get(directory / digest)

    def can_shift(self, mappings: IDMappings) -> bool:
        """Whether layers under these mappings are kept unmapped, for the driver to shift when it mounts."""
        return bool(mappings) and self.options.shift_ids and self.driver.supports_shifting()

    def layer_views(self) -> list[LayerView]:
        """The layers of the primary store, then those of additional stores, without locks."""
        return [tables.layers.peek() for tables in (self.tables, *self.additional)]
