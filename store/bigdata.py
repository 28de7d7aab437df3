"""Big data: named blobs kept as files beside the tables (FORMAT 4)."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from store.durable import write_atomic
from store.errors import BadBigDataKey, BigDataUnknown, DigestUnknown
from store.names import dedupe

if TYPE_CHECKING:
    from store.records import Container, Image

_PLAIN: Final = frozenset(".0123456789abcdefghijklmnopqrstuvwxyz")
MANIFEST: Final = "manifest"
"""Keys of images that begin so hold manifests and get a manifest's digest."""
_NAME_MAX: Final = 255


def file_name(key: str) -> str:
    """The name of the file that holds item ``key``.

    A key of dots, digits and lower-case letters is its own name, and so is one whose only other
    character is its last: every version of containers/storage has that quirk. Any other key is
    base64 after an ``=``.

    Raises:
        BadBigDataKey: the key is empty, or its file name would be ``.``, ``..``, over-long or have a ``/``.
    """
    name = key
    if not _PLAIN.issuperset(key[:-1]):
        name = "=" + base64.b64encode(key.encode("utf-8", "surrogateescape")).decode("ascii")
    raw = name.encode("utf-8", "surrogateescape")
    if not key or name in (".", "..") or "/" in name or "\0" in name or len(raw) > _NAME_MAX:
        raise BadBigDataKey(f"{key[:80]!r} cannot be the key of a big data item: it has no safe file name")
    return name


def read(directory: Path, key: str) -> bytes:
    """Content of item ``key``; :class:`BigDataUnknown` when its file is missing."""
    try:
        return (directory / file_name(key)).read_bytes()
    except FileNotFoundError:
        raise BigDataUnknown(f"there is no big data item {key!r} in {directory.name}") from None


def write(directory: Path, key: str, data: bytes) -> None:
    """Store item ``key``; ``directory`` is made when it is missing."""
    path = directory / file_name(key)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, data)


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of ``data``."""
    import hashlib  # loads OpenSSL

    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest_digest(data: bytes) -> str:
    """The digest a manifest is known by.

    That of its bytes, except for a signed schema 1 manifest: its signatures do not count, the digest
    is that of the text they sign (distribution specification, ``manifest-v2-1``).

    Raises:
        DigestUnknown: the signatures are malformed.
    """
    if b'"signatures"' not in data:
        return digest_of(data)
    import json

    try:
        document: Any = json.loads(data)
        if document.get("schemaVersion") != 1 or not document.get("signatures"):
            return digest_of(data)
        protected = json.loads(_unpadded(document["signatures"][0]["protected"]))
        payload = data[: int(protected["formatLength"])] + _unpadded(protected["formatTail"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DigestUnknown(f"the manifest's signatures are malformed: {error!r}") from None
    return digest_of(payload)


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def with_image_data(image: Image, key: str, data: bytes, digest: str = "") -> Image:
    """``image`` with item ``key`` of that content recorded.

    Raises:
        DigestUnknown: a signed schema 1 manifest is malformed.
    """
    is_manifest = key.startswith(MANIFEST)
    if not digest:
        digest = manifest_digest(data) if is_manifest else digest_of(data)
    changed = replace(
        image,
        big_data_names=dedupe([*image.big_data_names, key]),
        big_data_sizes={**image.big_data_sizes, key: len(data)},
        big_data_digests={**image.big_data_digests, key: digest},
    )
    if is_manifest and not changed.digest:
        changed = replace(changed, digest=digest)
    return changed


def with_container_data(container: Container, key: str, data: bytes, digest: str = "") -> Container:
    """``container`` with item ``key`` of that content recorded."""
    return replace(
        container,
        big_data_names=dedupe([*container.big_data_names, key]),
        big_data_sizes={**container.big_data_sizes, key: len(data)},
        big_data_digests={**container.big_data_digests, key: digest or digest_of(data)},
    )
