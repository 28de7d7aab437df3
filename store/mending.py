"""What other tools stumble over in records that are well formed: which it is, and the record without it.

containers/storage loads no image store at all with a digest it cannot parse, podman lists no image with
a big data key that names no file, and none with an image that has no manifest.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from store import bigdata
from store.errors import BadBigDataKey, StoreError
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

R = TypeVar("R", Container, Image, Layer)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")


def impossible_keys(record: Container | Image | Layer) -> list[str]:
    """Big data keys of a record that cannot name a file."""
    return [key for key in record.big_data_names if not _is_usable(key)]


def without_impossible_keys(record: R) -> R:
    """The record without the big data items nobody can ever have stored."""
    doomed = set(impossible_keys(record))
    anything: Any = record
    changes: dict[str, Any] = {"big_data_names": tuple(k for k in record.big_data_names if k not in doomed)}
    if not isinstance(record, Layer):
        for field in ("big_data_sizes", "big_data_digests"):
            changes[field] = {k: v for k, v in getattr(record, field).items() if k not in doomed}
    mended: R = replace(anything, **changes)
    return mended


def is_sha256(digest: str) -> bool:
    """Whether the digest of content can be compared with this one."""
    return digest.startswith("sha256:") and _DIGEST.fullmatch(digest) is not None


def malformed_digests(image: Image) -> list[str]:
    """Digests in an image's record that are none."""
    texts = (image.digest, *image.big_data_digests.values())
    return [text for text in texts if text and not _DIGEST.fullmatch(text)]


def without_malformed_digests(image: Image, home: Path) -> Image:
    """The record with digests of the items themselves, which are in ``home``, where it had none that is."""
    wrong = set(malformed_digests(image))
    digests = {key: text for key, text in image.big_data_digests.items() if text not in wrong}
    mended = replace(image, digest="" if image.digest in wrong else image.digest, big_data_digests=digests)
    for key in image.big_data_digests.keys() - digests.keys():
        try:
            mended = bigdata.with_image_data(mended, key, bigdata.read(home, key))
        except (StoreError, OSError):
            continue  # what is missing is another problem
    return mended


def lacks_manifest(image: Image) -> bool:
    """Whether podman could not list the image, nor any other."""
    return not any(key.startswith(bigdata.MANIFEST) for key in image.big_data_names)


def made_up_manifest(image: Image, layers: Iterable[Layer]) -> list[tuple[str, bytes]]:
    """Big data that makes an image without a manifest one: it says what the layers are, and no more.

    Args:
        layers: the image's, base first.
    """
    from store.oci import big_data, plain_layer  # few need it, and it needs much
    from store.oci_config import build_config, build_manifest, host_platform

    blobs = [plain_layer(layer.diff_digest, layer.diff_size) for layer in layers if layer.diff_digest]
    config = build_config(
        created=image.created,
        config={},
        diff_ids=[blob.digest for blob in blobs],
        history=[],
        target=host_platform(),
    )
    return big_data(config, build_manifest(config, blobs))


def _is_usable(key: str) -> bool:
    try:
        bigdata.file_name(key)
    except BadBigDataKey:
        return False
    return True
