"""Consistency of a store: what is wrong with it, and putting it right.

The kinds of problems are those containers/storage's ``Check`` knows, and the ones that stop its tools
from opening a store at all. Repair never touches a container unless told to.
"""

from __future__ import annotations

import enum
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from drivers.base import Compression
from drivers.errors import ArchiveError, DriverError
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store import bigdata, mending
from store.deletion import Deletions
from store.diffs import Diffs
from store.durable import remove_tree
from store.errors import StoreError
from store.ids import ID
from store.staging import Staging

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.core import Transaction
    from store.mending import R
    from store.records import Container, Image, Layer
    from store.segment import Broken
    from store.table import Draft
    from store.view import View

Told = Callable[[str], None]
_PIECE: Final = 1 << 20
_DAY: Final = 86400.0
_TAR_SPLIT: Final = re.compile(r"([0-9a-f]{64})\.tar-split\.gz")
_TEMPORARY: Final = re.compile(r"\.tmp-.+")
_TEMPORARY_AGE: Final = 3600.0
"""Seconds after which a temporary file is a leftover: its writer holds the table's lock meanwhile."""


class Kind(enum.Enum):
    """What can be wrong; the value names it to people."""

    UNREADABLE_TABLE = "table cannot be parsed"
    BROKEN_RECORD = "malformed record"
    INCOMPLETE_LAYER = "layer was never finished"
    LAYER_WITHOUT_DATA = "layer has no content in the driver"
    MISSING_PARENT = "parent of layer does not exist"
    UNREFERENCED_LAYER = "layer is used by nothing"
    UNACCOUNTED_LAYER = "driver holds a layer no record names"
    MODIFIED_LAYER = "layer differs from its archive"
    MISSING_LAYER = "layer of image or container does not exist"
    MISSING_IMAGE = "image of container does not exist"
    BAD_DIGEST = "digest that cannot be parsed"
    BAD_KEY = "big data key that can name no file"
    MISSING_MANIFEST = "image has no manifest"
    BAD_DATA = "big data item is missing or damaged"
    LEFTOVER = "file or directory that belongs to nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding: in ``table`` (``layers``, ``images``, ``containers``), about object or path ``id``."""

    kind: Kind
    table: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.table[:-1]} {self.id}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How thorough a check is.

    Attributes:
        unreferenced_age: seconds a layer may be unused before it counts; tools make layers first.
        digests: read layers back as archives and compare sizes and digests; reads all content.
        data: compare big data with recorded sizes and digests.
        manifests: whether an image needs a manifest. The store does without, but podman lists no image
            at all beside such a one.
    """

    unreferenced_age: float = _DAY
    digests: bool = False
    data: bool = True
    manifests: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """``remove_containers``: damaged containers, and those on damaged layers, may be removed."""

    remove_containers: bool = False


class Checks(Diffs, Deletions, Staging):
    """Methods of :class:`store.store.Store` about consistency."""

    def check(
        self, options: CheckOptions | None = None, *, progress: Callable[[str], None] | None = None
    ) -> list[Problem]:
        """Look for problems without changing anything; ``Check``.

        The tables stay locked, shared, only while driver and files are compared with the records.

        Args:
            progress: told of the ID of each layer, image and container before it is looked at.

        Raises:
            LockTimeout, OSError
        """
        options = options or CheckOptions()
        told = progress or _nobody
        found = list(self._check_driver())
        catalog = self.catalog()
        found += (_broken(broken) for broken in catalog.broken)
        found += self._check_layers(catalog, options, told)
        found += self._check_images(catalog, options, told)
        found += self._check_containers(catalog, options, told)
        return found

    def _check_driver(self) -> Iterator[Problem]:
        """Records without content, content and files without records; needs all who create to hold still."""
        with self.transaction(layers="r", images="r", containers="r") as tx:
            held = set(self.driver.layer_ids()) - self.staged_ids()
            view = tx.layers.view
            leftovers = list(self.leftover_paths())
        for table, path in leftovers:
            text = "it belongs to no record"
            yield Problem(kind=Kind.LEFTOVER, table=table, id=str(path), text=text)
        unreadable = any(broken.id.endswith(".json") for broken in view.broken)
        known = set(view.by_id) | {broken.id for broken in view.broken}
        for layer in view:
            if layer.incomplete:
                yield _layer(Kind.INCOMPLETE_LAYER, layer, "its creation or removal was interrupted")
            elif layer.id not in held:
                yield _layer(Kind.LAYER_WITHOUT_DATA, layer, "the driver has no content for it")
        if not unreadable:
            for layer_id in sorted(held - known):
                text = f"the {self.driver_name} driver holds it, but no record names it"
                yield Problem(kind=Kind.UNACCOUNTED_LAYER, table="layers", id=layer_id, text=text)

    def _check_layers(self, catalog: Catalog, options: CheckOptions, told: Told) -> Iterator[Problem]:
        used = {layer for image in catalog.images for layer in (image.layer, *image.mapped_layers)}
        used |= {container.layer for container in catalog.containers} | {i.parent for i in catalog.layers}
        oldest = time.time_ns() - int(options.unreferenced_age * 1e9)
        for layer in catalog.layers:
            told(layer.id)
            if layer.parent and catalog.layer(layer.parent) is None:
                yield _layer(Kind.MISSING_PARENT, layer, f"its parent {layer.parent} does not exist")
            if layer.id not in used and layer.created_ns < oldest and not layer.read_only:
                yield _layer(Kind.UNREFERENCED_LAYER, layer, "no image, container or layer uses it")
            if options.data:
                yield from self._check_layer_data(layer)
            if options.digests and layer.diff_digest and (problem := self._check_digest(layer)):
                yield problem

    def _check_layer_data(self, layer: Layer) -> Iterator[Problem]:
        yield from _bad_keys("layers", layer)
        for key in _usable_keys(layer):
            try:
                self.layer_big_data(layer.id, key)
            except (StoreError, OSError) as error:
                yield _layer(Kind.BAD_DATA, layer, f"item {key!r}: {error}")

    def _check_digest(self, layer: Layer) -> Problem | None:
        """Read the layer back as the archive it was made from."""
        if not any(path.exists() for path in self.tar_split_paths(layer.id)):
            return None
        digest, size = hashlib.sha256(), 0
        try:
            with self.diff(layer.id, layer.parent, Compression.NONE) as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
                    size += len(piece)
        except (ArchiveError, DriverError, OSError) as error:
            return _layer(Kind.MODIFIED_LAYER, layer, str(error))
        if (f"sha256:{digest.hexdigest()}", size) != (layer.diff_digest, layer.diff_size):
            actual = f"sha256:{digest.hexdigest()} of {size} bytes"
            text = f"it reads back as {actual}, {layer.diff_digest} of {layer.diff_size} bytes is recorded"
            return _layer(Kind.MODIFIED_LAYER, layer, text)
        return None

    def _check_images(self, catalog: Catalog, options: CheckOptions, told: Told) -> Iterator[Problem]:
        for image in catalog.images:
            told(image.id)
            for layer in (image.layer, *image.mapped_layers):
                if layer and catalog.layer(layer) is None:
                    yield _image(Kind.MISSING_LAYER, image, f"its layer {layer} does not exist")
            for digest in mending.malformed_digests(image):
                yield _image(Kind.BAD_DIGEST, image, f"{digest!r:.100} is no digest")
            if options.manifests and not image.read_only and mending.lacks_manifest(image):
                yield _image(
                    Kind.MISSING_MANIFEST, image, "podman lists no image as long as this one has none"
                )
            yield from _bad_keys("images", image)
            if options.data:
                home = self._directory_of(image)
                for text in _check_items(image, home, manifests=True):
                    yield _image(Kind.BAD_DATA, image, text)

    def _check_containers(self, catalog: Catalog, options: CheckOptions, told: Told) -> Iterator[Problem]:
        for container in catalog.containers:
            told(container.id)
            if catalog.layer(container.layer) is None:
                yield _container(Kind.MISSING_LAYER, container, f"its layer {container.layer} does not exist")
            if container.image and catalog.image(container.image) is None:
                yield _container(Kind.MISSING_IMAGE, container, f"its image {container.image} does not exist")
            yield from _bad_keys("containers", container)
            if options.data:
                for text in _check_items(container, self._directory_of(container), manifests=False):
                    yield _container(Kind.BAD_DATA, container, text)

    def leftover_paths(self) -> Iterator[tuple[str, Path]]:
        """Directories and tar-split files of IDs no table has, and temporary files of dead writers."""
        tables, staged = self.tables, self.staged_ids()
        views: list[View[Layer] | View[Image] | View[Container]]
        views = [tables.layers.peek(), tables.images.peek(), tables.containers.peek()]
        for table, view in zip(("layers", "images", "containers"), views, strict=True):
            if any(broken.id.endswith(".json") for broken in view.broken):
                continue
            ids = set(view.by_id) | {broken.id for broken in view.broken} | staged
            if table == "layers":  # the tar-split data of layers of an image store that is only read is here
                ids |= {layer_id for more in self.layer_views()[1:] for layer_id in more.by_id}
            for path in sorted(path for home in self.table_directories(table) for path in home.iterdir()):
                split = _TAR_SPLIT.fullmatch(path.name)
                name = split[1] if split else path.name
                is_own = ID.fullmatch(name) and (split or path.is_dir())
                if (is_own and name not in ids) or _is_old_temporary(path):
                    yield table, path

    # -- putting right ---------------------------------------------------------------------------

    def garbage_collect(self) -> list[str]:
        """Remove content, files and directories no record names; ``GarbageCollect``.

        Returns:
            IDs of layers and paths that were removed.

        Raises:
            LockTimeout, BadRecord (a table cannot be parsed: everything might belong to it), OSError
        """
        with self._all() as tx:
            removed = self._collect(tx)
        return removed

    def _collect(self, tx: Transaction) -> list[str]:
        known = set(tx.layers.view.by_id) | {broken.id for broken in tx.layers.view.broken}
        removed = sorted(set(self.driver.layer_ids()) - known - self.staged_ids())
        for layer_id in removed:
            with suppress(DriverLayerUnknown):
                self.driver.remove(layer_id)
        for _, path in list(self.leftover_paths()):
            remove_tree(path)
            removed.append(str(path))
        return removed

    def repair(self, problems: Iterable[Problem], options: RepairOptions | None = None) -> list[Problem]:
        """Put right what :meth:`check` found; ``Repair``.

        Records get digests and big data keys other tools can read, and images a manifest that says no
        more than what their layers are. Damaged images go, then layers that are damaged or unused with
        everything made from them, then what no record names. Malformed records are dropped from their
        table.

        Returns:
            problems that remain: those of containers that may not be removed, and tables that cannot be
            parsed, which only a person can mend.

        Raises:
            LockTimeout, OSError
        """
        options = options or RepairOptions()
        wanted = list(problems)
        unreadable = [problem for problem in wanted if problem.kind is Kind.UNREADABLE_TABLE]
        if unreadable:
            return wanted
        with self._all() as tx:
            self._drop_broken_records(tx, wanted)
            self._mend_records(tx, wanted)
            self._repair_objects(tx, wanted, options)
            self._collect(tx)
        self._add_manifests(_ids(wanted, "images", Kind.MISSING_MANIFEST))
        kinds = {problem.kind for problem in wanted}
        return [problem for problem in self.check(_as_thorough(kinds)) if problem.kind in kinds]

    def _drop_broken_records(self, tx: Transaction, problems: list[Problem]) -> None:
        ids = {(problem.table, problem.id) for problem in problems if problem.kind is Kind.BROKEN_RECORD}
        for draft in (tx.layers, tx.images, tx.containers):
            for broken in draft.view.broken:
                if (broken.table, broken.id) in ids:
                    draft.drop_broken(broken)
            draft.flush()

    def _mend_records(self, tx: Transaction, problems: list[Problem]) -> None:
        for image_id in _ids(problems, "images", Kind.BAD_DIGEST):
            if (image := tx.images.get(image_id)) is not None:
                tx.images.put(mending.without_malformed_digests(image, self._directory_of(image)))
        _drop_keys(tx.layers, _ids(problems, "layers", Kind.BAD_KEY))
        _drop_keys(tx.images, _ids(problems, "images", Kind.BAD_KEY))
        _drop_keys(tx.containers, _ids(problems, "containers", Kind.BAD_KEY))

    def _add_manifests(self, images: set[str]) -> None:
        catalog = self.catalog()
        for image in [image for image in catalog.images if image.id in images]:
            layers = catalog.chain(image.layer) if image.layer else []
            for key, data in mending.made_up_manifest(image, layers):
                self.set_image_big_data(image.id, key, data)

    def _repair_objects(self, tx: Transaction, problems: list[Problem], options: RepairOptions) -> None:
        damaged = _ids(problems, "layers", Kind.LAYER_WITHOUT_DATA, Kind.MODIFIED_LAYER, Kind.MISSING_PARENT)
        damaged |= _ids(problems, "layers", Kind.BAD_DATA)
        doomed = _with_descendants(tx, damaged)
        bad_images = _ids(problems, "images", Kind.MISSING_LAYER, Kind.BAD_DATA)
        bad_containers = _ids(problems, "containers", Kind.MISSING_LAYER)
        bad_containers |= {container.id for container in tx.containers if container.layer in doomed}
        if options.remove_containers:
            for container in [container for container in tx.containers if container.id in bad_containers]:
                self._drop_container(tx, container)
        kept = {container.layer for container in tx.containers}
        used_images = {container.image for container in tx.containers}
        for image in list(tx.images):
            if (image.id in bad_images or image.layer in doomed) and image.id not in used_images:
                self._drop_image_record(tx, image)
        unused = _ids(problems, "layers", Kind.UNREFERENCED_LAYER)
        self._drop_layers(tx, doomed | unused, kept)

    def _drop_layers(self, tx: Transaction, doomed: set[str], kept: set[str]) -> None:
        """Remove layers, children first, as long as nothing that stays needs them."""
        needed = kept | {layer for image in tx.images for layer in (image.layer, *image.mapped_layers)}
        progress = True
        while progress:
            progress = False
            for layer in [layer for layer in tx.layers if layer.id in doomed - needed]:
                if not tx.layers.view.children(layer.id):
                    self._drop_layer(tx, layer)
                    progress = True


def _nobody(_id: str) -> None:
    """Progress that is not wanted."""


def _with_descendants(tx: Transaction, layers: set[str]) -> set[str]:
    """``layers`` and everything made from them."""
    found: set[str] = set()
    waiting = list(layers)
    while waiting:
        layer_id = waiting.pop()
        if layer_id not in found:
            found.add(layer_id)
            waiting += (child.id for child in tx.layers.view.children(layer_id))
    return found


def _ids(problems: Iterable[Problem], table: str, *kinds: Kind) -> set[str]:
    return {problem.id for problem in problems if problem.table == table and problem.kind in kinds}


def _as_thorough(kinds: set[Kind]) -> CheckOptions:
    return CheckOptions(
        digests=Kind.MODIFIED_LAYER in kinds,
        manifests=Kind.MISSING_MANIFEST in kinds,
        unreferenced_age=0 if Kind.UNREFERENCED_LAYER in kinds else _DAY,
    )


def _drop_keys(draft: Draft[R], ids: set[str]) -> None:
    for record in [record for record in draft if record.id in ids]:
        draft.put(mending.without_impossible_keys(record))


def _usable_keys(record: Image | Container | Layer) -> list[str]:
    unusable = mending.impossible_keys(record)
    return [key for key in record.big_data_names if key not in unusable]


def _bad_keys(table: str, record: Image | Container | Layer) -> Iterator[Problem]:
    for key in mending.impossible_keys(record):
        text = f"{key!r:.100} can be the key of no big data item"
        yield Problem(kind=Kind.BAD_KEY, table=table, id=record.id, text=text)


def _check_items(record: Image | Container, home: Path, *, manifests: bool) -> Iterator[str]:
    """Texts about big data items that are not what the record says."""
    for key in _usable_keys(record):
        try:
            data = bigdata.read(home, key)
        except (StoreError, OSError) as error:
            yield f"item {key!r}: {error}"
            continue
        size, digest = record.big_data_sizes.get(key), record.big_data_digests.get(key)
        if size is not None and size != len(data):
            yield f"item {key!r} has {len(data)} bytes, {size} are recorded"
        elif digest and mending.is_sha256(digest) and not (manifests and key.startswith(bigdata.MANIFEST)):
            actual = bigdata.digest_of(data)
            if actual != digest:
                yield f"item {key!r} has digest {actual}, {digest} is recorded"


def _is_old_temporary(path: Path) -> bool:
    if not _TEMPORARY.fullmatch(path.name):
        return False
    try:
        return path.lstat().st_mtime < time.time() - _TEMPORARY_AGE
    except FileNotFoundError:
        return False


def _broken(broken: Broken) -> Problem:
    kind = Kind.UNREADABLE_TABLE if broken.id.endswith(".json") else Kind.BROKEN_RECORD
    return Problem(kind=kind, table=broken.table, id=broken.id, text=broken.why)


def _layer(kind: Kind, layer: Layer, text: str) -> Problem:
    return Problem(kind=kind, table="layers", id=layer.id, text=text)


def _image(kind: Kind, image: Image, text: str) -> Problem:
    return Problem(kind=kind, table="images", id=image.id, text=text)


def _container(kind: Kind, container: Container, text: str) -> Problem:
    return Problem(kind=kind, table="containers", id=container.id, text=text)
