"""The data plane: requests on real directory trees, served in C without running Python."""

from fsd.plane.mounting import mount, unmount
from fsd.plane.plane import (
    ASKED,
    ENTRY,
    GUARDED,
    LISTED,
    OURS,
    PLACES,
    PUBLISHED_HANDLE,
    TOLD,
    UNLOOKED,
    Event,
    Export,
    Kind,
    Mode,
    Plane,
    Stats,
    number_of,
)

__all__ = [
    "ASKED",
    "ENTRY",
    "GUARDED",
    "LISTED",
    "OURS",
    "PLACES",
    "PUBLISHED_HANDLE",
    "TOLD",
    "UNLOOKED",
    "Event",
    "Export",
    "Kind",
    "Mode",
    "Plane",
    "Stats",
    "mount",
    "number_of",
    "unmount",
]
