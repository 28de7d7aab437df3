"""The data plane: requests on real directory trees, served in C without running Python."""

from fsd.plane.plane import OURS, Event, Export, Kind, Mode, Plane, Stats, mount, number_of, unmount

__all__ = ["OURS", "Event", "Export", "Kind", "Mode", "Plane", "Stats", "mount", "number_of", "unmount"]
