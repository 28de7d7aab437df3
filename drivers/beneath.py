"""What a layer's tree lies on while an archive is unpacked into it.

A plain tree holds everything itself. The upper directory of an overlay holds changes only, so an entry may
concern files of the layers below: they are copied up, or hidden by marks, as the kernel would have done had
the archive been unpacked through a mount. :class:`Beneath` says where those moments are and, being the case
of a plain tree, does nothing at any of them.

Paths are clean and relative to the layer's root; ``directory`` is an open directory and ``name`` an entry of
it, the last component of ``path`` where both are given.
"""

from __future__ import annotations


class Beneath:
    """Nothing beneath."""

    directories = False
    """Whether a directory that is new to the tree may have to be copied up from below."""
    plain = True
    """Whether owner and mode of a file are kept as its own."""

    def bring(self, path: bytes) -> None:
        """Copy up the directories on the way to ``path`` and itself, and a symbolic link that ends it."""

    def bring_directory(self, directory: int, path: bytes, name: bytes) -> bool:
        """Copy up the directory ``path``, which ``directory`` lacks; whether it is there now."""
        return False

    def bring_file(self, directory: int, path: bytes, name: bytes) -> None:
        """Copy up ``path`` unless ``directory`` has it; it is no directory."""

    def hide(self, directory: int, path: bytes, name: bytes) -> None:
        """Make what is below at ``path`` invisible; ``name`` is free in ``directory``."""

    def hide_content(self, directory: int) -> None:
        """Make what the directory has below it invisible."""

    def uncover(self, directory: int, name: bytes) -> bool:
        """Remove a mark at ``name`` that hides what is below; whether there was one."""
        return False

    def own(self, target: int | bytes, uid: int, gid: int, mode: int) -> bool:
        """Record owner and mode of a file, open or by path, elsewhere; false to have them set on it."""
        return False

    def accepts(self, attribute: bytes) -> bool:
        """Whether an archive may set this extended attribute."""
        return True


NOTHING = Beneath()
