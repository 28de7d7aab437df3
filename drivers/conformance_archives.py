"""Layer archives for the conformance checks, written with the standard library."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence

from drivers.conformance_trees import EPOCH


def archive_of(entries: Sequence[tuple[str, str]]) -> bytes:
    """A tar of files by name and content; a content ``-> TARGET`` is a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.mtime = EPOCH
            if content.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:]
                tar.addfile(member)
            else:
                member.size = len(content.encode())
                member.uid, member.gid = 11, 12
                tar.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


def layer_archive(compression: str = "") -> bytes:
    """A layer over ``plain_files``: a whiteout, an opaque directory with a new file, and a new file."""
    raw = archive_of([(".wh.file0", ""), ("d0/.wh..wh..opq", ""), ("d0/fresh", "fresh"), ("new", "new file")])
    return gzip.compress(raw, mtime=0) if compression == "gz" else raw
