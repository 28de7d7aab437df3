"""Options of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.lockfile import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from drivers.idmap import IDMap


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where a store is and how it behaves.

    Attributes:
        graphroot, runroot: persistent state, and state a reboot loses; text or path.
        driver: graph driver's name; empty lets :func:`drivers.open_driver` choose.
        driver_options: ``<driver>.<key>=<value>`` texts.
        driver_priority: drivers to try first when none is named.
        additional_image_stores: graphroots of read-only stores whose images are usable here.
        uidmap, gidmap: mapping of layers that ask for none; empty is the identity.
        root_auto_userns_user: whose subordinate IDs automatic user namespaces take; containers/storage's
            default is ``containers``.
        auto_userns_min_size, auto_userns_max_size: bounds of an automatic user namespace, in IDs.
        disable_volatile: ignore a container's wish to be volatile.
        transient_store: keep container state in the runroot.
        pull_options: ``[storage.options] pull_options`` as written.
        shift_ids: keep layers of mapped containers unmapped and shift owners when mounting, where the driver
            can. Such containers have wrong owners in tools whose driver cannot.
        lock_timeout: seconds to wait for a lock before LockTimeout.
    """

    graphroot: str = ""
    runroot: str = ""
    driver: str = ""
    driver_options: tuple[str, ...] = ()
    driver_priority: tuple[str, ...] = ()
    additional_image_stores: tuple[str, ...] = ()
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    root_auto_userns_user: str = ""
    auto_userns_min_size: int = 1024
    auto_userns_max_size: int = 65536
    disable_volatile: bool = False
    transient_store: bool = False
    pull_options: tuple[tuple[str, str], ...] = ()
    shift_ids: bool = False
    lock_timeout: float = DEFAULT_TIMEOUT


def load_options() -> StoreOptions:
    """Options from the configuration files and the environment."""
    return StoreOptions(graphroot="/var/lib/containers/storage", runroot="/run/containers/storage")
