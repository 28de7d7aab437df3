"""Image names as podman reads them: registries, tags, digests and short names.

A *normalised* name has a registry, a path and a tag or digest: ``docker.io/library/alpine:latest``.
The grammar is that of the distribution project's image references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from store.errors import BadName

DOCKER: Final = "docker.io"
LOCAL: Final = "localhost"
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN: Final = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_REFERENCE: Final = (
    rf"(?:(?P<domain>{_DOMAIN}(?::\d+)?|\[[0-9A-Fa-f:]+\](?::\d+)?)/)?"
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)


class Reference(NamedTuple):
    """The parts of an image name; a part that was not given is empty."""

    domain: str
    path: str
    tag: str
    digest: str

    def __str__(self) -> str:
        text = f"{self.domain}/{self.path}" if self.domain else self.path
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text


def parse(text: str) -> Reference:
    """Split an image name into its parts.

    Raises:
        BadName: ``text`` is not an image name.
    """
    match = re.fullmatch(_REFERENCE, text, re.ASCII)
    if match is None:
        raise BadName(f"{text!r} is not an image name (repository names are lower case)")
    domain, path = match["domain"] or "", match["path"]
    if domain and not _is_domain(domain):
        domain, path = "", f"{domain}/{path}"
        if not re.fullmatch(rf"{_COMPONENT}(?:/{_COMPONENT})*", path):
            raise BadName(f"{text!r} is not an image name (repository names are lower case)")
    return Reference(domain, path, match["tag"] or "", match["digest"] or "")


def _is_domain(text: str) -> bool:
    """Whether a first component is a registry and not part of the path."""
    return "." in text or ":" in text or text == LOCAL or text.lower() != text


def normalize(text: str, *, short: str = LOCAL) -> str:
    """The full form of an image name, tagged ``latest`` if it has neither tag nor digest.

    Args:
        short: the registry of a name without one; podman gives images it makes ``localhost``.

    Raises:
        BadName
    """
    reference = parse(text)
    if not reference.tag and not reference.digest:
        reference = reference._replace(tag="latest")
    if not reference.domain:
        reference = reference._replace(domain=short)
    if reference.domain in (DOCKER, "index.docker.io"):
        path = reference.path if "/" in reference.path else f"library/{reference.path}"
        reference = reference._replace(domain=DOCKER, path=path)
    return str(reference)


def candidates(text: str) -> list[str]:
    """The full names ``text`` may stand for, in podman's order; empty if it is not an image name."""
    try:
        reference = parse(text)
    except BadName:
        return []
    if reference.domain:
        return [normalize(text)]
    return [normalize(text, short=LOCAL), normalize(text, short=DOCKER)]


def matches_short(name: str, text: str) -> bool:
    """Whether the stored image ``name`` is ``text`` below some registry or path.

    ``quay.io/fedora/httpd:latest`` is found as ``httpd`` and as ``fedora/httpd:latest``.
    """
    try:
        wanted, have = parse(text), parse(name)
    except BadName:
        return False
    if wanted.domain or (wanted.digest and wanted.digest != have.digest):
        return False
    if not wanted.digest and (wanted.tag or "latest") != have.tag:
        return False
    return have.path == wanted.path or have.path.endswith(f"/{wanted.path}")


def dedupe(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` without repeats, first occurrence kept."""
    return tuple(dict.fromkeys(names))
