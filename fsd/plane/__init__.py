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
    Export,
    Mode,
    Plane,
    Stats,
    number_of,
)
from fsd.plane.told import Event, Kind, Preparation, Taken

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
    "Preparation",
    "Stats",
    "Taken",
    "mount",
    "number_of",
    "unmount",
]
