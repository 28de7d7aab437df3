"""Size limits of containers, kept by the driver's quota.

What a limit counts is the driver's: with simple quotas the data the container itself wrote, with full
qgroups also what it shares with its image. Writes beyond it fail with EDQUOT. A limit outlives rollback,
the trash and a reboot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.errors import BadOption, NotSupported
from drivers.options import parse_size
from store.errors import BadValue

if TYPE_CHECKING:
    from store.store import Store


def parse_limit(text: str) -> int:
    """Bytes of ``10G``, ``1.5 GiB``, ``4096`` or ``0``; units are binary, as podman's are.

    Raises:
        BadValue: not a size, negative, or too large.
    """
    try:
        return parse_size(text.strip(), "limit")
    except BadOption as error:
        raise BadValue(f"{error}; 0 lifts the limit") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A container's limit in bytes, 0 without one; ``used`` counts against it, ``None`` if not known."""

    bytes: int
    used: int | None = None


class Limits:
    """The limits of one store's containers. ``container`` is what :meth:`Store.container` resolves.

    Where the driver has no quota, methods raise ``drivers.errors.NotSupported``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def supported(self) -> bool:
        """Whether the driver can limit layers."""
        return self._store.driver.capabilities.quota

    def get(self, container: str) -> Limit:
        """A container's limit; ``ContainerUnknown``, ``LayerUnknown``."""
        layer = self._store.container(container).layer
        if not self.supported:
            self._refuse()
        driver = self._store.driver
        size = driver.limit(layer)
        return Limit(bytes=size, used=driver.charged(layer) if size else None)

    def set(self, container: str, text: str) -> Limit:
        """Limit a container to a size such as ``10G`` from now on; ``0`` lifts the limit.

        A limit below what the container holds is possible: it can then only shrink.

        Raises:
            ContainerUnknown, BadValue, NotSupported (driver, kernel or privilege)
            OSError
        """
        size = parse_limit(text)
        layer = self._store.container(container).layer
        if not self.supported:
            self._refuse()
        try:
            self._store.driver.set_limit(layer, size)
        except BadOption as error:
            raise BadValue(str(error)) from None
        return Limit(bytes=size)

    def _refuse(self) -> None:
        raise NotSupported(f"the {self._store.driver_name} driver cannot limit the size of containers")
