"""What a graph driver raises.

::

    DriverError
    ├── NotSupported            this kernel, filesystem or driver cannot do it
    ├── PrerequisitesMissing    the driver could work, but something it needs is absent
    ├── IncompatibleFilesystem  the driver refuses the filesystem below its home
    ├── SeveralDrivers          the graphroot holds state of more than one driver
    ├── BadOption               an option is unknown to the driver, or its value is malformed
    ├── BadLayerID              an ID no driver can use as a directory name
    ├── LayerUnknown            no such layer in this driver
    ├── LayerExists             the ID is taken
    ├── LayerMounted            the layer is mounted and the operation needs it idle
    ├── SnapshotUnknown, SnapshotExists
    └── ArchiveError            a layer archive cannot be applied or reproduced
        ├── MalformedArchive    truncated, garbage, or against the tar specification
        ├── HostileArchive      an entry reaches outside its layer, or exceeds a limit
        └── IntegrityError      stored content does not match its recorded checksum

The first three are the error kinds of a containers/storage driver's init
(ErrNotSupported, ErrPrerequisites, ErrIncompatibleFS). A failed system call is an
``OSError`` with errno and path; it is never wrapped into anything that loses them.
"""

from __future__ import annotations


class DriverError(Exception):
    """Base of everything a driver raises on purpose."""


class NotSupported(DriverError):
    """The driver, kernel or filesystem cannot do what was asked."""


class PrerequisitesMissing(DriverError):
    """Something the driver needs is absent; the text says what."""


class IncompatibleFilesystem(DriverError):
    """The driver does not run on the filesystem below its home directory."""


class SeveralDrivers(DriverError):
    """More than one driver has state in the graphroot, and none was named."""


class BadOption(DriverError):
    """A driver option is unknown, or its value cannot be parsed."""


class BadLayerID(DriverError):
    """The ID is empty, too long, or holds ``/`` or NUL, or is ``.`` or ``..``."""


class LayerUnknown(DriverError):
    """The driver holds no layer of that ID."""


class LayerExists(DriverError):
    """The driver already holds a layer of that ID."""


class LayerMounted(DriverError):
    """The layer is mounted."""


class SnapshotUnknown(DriverError):
    """No snapshot of that key."""


class SnapshotExists(DriverError):
    """The snapshot key is taken."""


class ArchiveError(DriverError):
    """A layer archive cannot be applied or reproduced; the text names the entry."""


class MalformedArchive(ArchiveError):
    """The archive is truncated, garbage, or breaks the tar specification."""


class HostileArchive(ArchiveError):
    """An entry would reach outside its layer, or exceeds a size, count or ratio limit."""


class IntegrityError(ArchiveError):
    """A file's content no longer matches the checksum recorded for it.

    Attributes:
        name: the file's, as the archive has it; empty where it is not the content that is wrong.
    """

    def __init__(self, text: str, *, name: bytes = b"") -> None:
        super().__init__(text)
        self.name = name
