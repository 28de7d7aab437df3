"""OCI image configurations and manifests (OCI image specification 1.0, ``config.md``, ``manifest.md``).

The documents are JSON without spaces, encoded as containers/image encodes them.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.codec import dumps
from store.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPES = (MANIFEST_TYPE, DOCKER_MANIFEST_TYPE)
INDEX_TYPES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The environment an image gets when none is asked for."""

_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
}
"""Kernel machine names whose GOARCH and GOARM differ; others (ppc64le, s390x, riscv64) are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A blob as a manifest names it: media type, ``sha256:<hex>`` digest, and size in bytes."""

    media_type: str
    digest: str
    size: int

    def as_json(self) -> dict[str, Any]:
        """The JSON object, in the specification's order."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def sha256(data: bytes) -> str:
    """The digest of ``data`` as ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(digest: str) -> str:
    """The hex digits of a ``sha256:<hex>`` digest."""
    return digest.partition(":")[2]


def layer_id(parent: str, diff_digest: str) -> str:
    """The ID containers/image gives a layer over ``parent`` (an ID, or empty), FORMAT 2.5."""
    own = hex_of(diff_digest)
    return hashlib.sha256(f"{parent}+{own}".encode()).hexdigest() if parent else own


def host_platform() -> dict[str, str]:
    """``architecture``, ``os`` and where needed ``variant`` of this machine."""
    machine = platform.machine()
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    found = {"architecture": architecture, "os": "linux"}
    return found | {"variant": variant} if variant else found


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_environment(value: object) -> bool:
    return _is_texts(value) and all("=" in item for item in value)  # type: ignore[attr-defined]


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in (*value, *value.values()))


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and v == {} for k, v in value.items())


_OVERRIDES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "User": (_is_text, "text such as 1000:1000"),
    "ExposedPorts": (_is_set, 'an object such as {"80/tcp": {}}'),
    "Env": (_is_environment, "a list of NAME=VALUE"),
    "Entrypoint": (_is_texts, "a list of texts"),
    "Cmd": (_is_texts, "a list of texts"),
    "Volumes": (_is_set, 'an object such as {"/data": {}}'),
    "WorkingDir": (_is_text, "a path"),
    "Labels": (_is_text_map, "an object of texts"),
    "StopSignal": (_is_text, "text such as SIGTERM"),
}
"""The keys of ``config`` in ``config.md``, in its order, with what each takes."""


def run_config(overrides: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``config`` object: how a container of the image runs.

    Args:
        overrides: keys of ``config`` with new values; ``None`` removes one.
        base: the object to start from; a shell and a ``PATH`` when not given.

    Raises:
        BadValue: an unknown key, or a value of the wrong kind
    """
    merged = dict(base if base is not None else {"Cmd": ["/bin/sh"], "Env": [PATH]})
    for key, value in overrides.items():
        if key not in _OVERRIDES:
            raise BadValue(f"{key!r:.40} is no key of an image's config; there are {', '.join(_OVERRIDES)}")
        fits, form = _OVERRIDES[key]
        if value is not None and not fits(value):
            raise BadValue(f"{key} takes {form}, not {value!r:.60}")
        merged[key] = value
    places = {key: place for place, key in enumerate(_OVERRIDES)}
    kept = [item for item in merged.items() if item[1] is not None]
    return dict(sorted(kept, key=lambda item: places.get(item[0], len(places))))


def build_config(
    *,
    created: str,
    config: Mapping[str, Any],
    diff_ids: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    target: Mapping[str, str],
) -> bytes:
    """An image configuration.

    Args:
        created: RFC 3339.
        config: see :func:`run_config`.
        diff_ids: digests of the uncompressed layers, base first.
        target: ``architecture``, ``os`` and perhaps ``variant``, see :func:`host_platform`.
    """
    document = {
        "created": created,
        **target,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [dict(entry) for entry in history],
    }
    return dumps(document, sort_keys=False).encode()


def build_manifest(config: bytes, layers: Sequence[Descriptor]) -> bytes:
    """The manifest of an image with this configuration and these layers, base first."""
    own = Descriptor(media_type=CONFIG_TYPE, digest=sha256(config), size=len(config))
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": own.as_json(),
        "layers": [layer.as_json() for layer in layers],
    }
    return dumps(document, sort_keys=False).encode()


def build_docker_manifest(config: bytes, layers: Sequence[Descriptor]) -> bytes:
    """The schema 2 manifest containers/image makes for an image of a docker-archive.

    Its layers are said to be compressed although digests and sizes are of the plain archives.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST_TYPE,
        "config": {"mediaType": DOCKER_CONFIG_TYPE, "size": len(config), "digest": sha256(config)},
        "layers": [
            {"mediaType": DOCKER_LAYER_TYPE, "size": layer.size, "digest": layer.digest} for layer in layers
        ],
    }
    return dumps(document, sort_keys=False).encode()
