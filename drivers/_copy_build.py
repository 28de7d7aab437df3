"""Builds ``drivers._copy``: the copy and the removal of a directory tree (cffi, API mode).

One call handles a whole tree while the GIL is released. The walks hold two descriptors however deep the
tree is, open every name relative to its directory without following symbolic links, and return from a
directory by ``..`` only if that is still the directory they came from. The C text is in ``drivers/tree``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

PARTS = ("state", "links", "attributes", "content", "walk", "removal")
SOURCES = Path(__file__).parent / "tree"

ffibuilder = FFI()
ffibuilder.cdef(
    """
    static int copy_tree(int source, int target, uint64_t counts[4], char *where, size_t where_size,
                         const char **what);
    static int copy_entry_alone(int source, int target, const char *name, const char **what);
    static int directory_has_types(int fd);
    static int remove_tree(int parent, const char *name);
    """
)
ffibuilder.set_source(
    "drivers._copy",
    "".join((SOURCES / f"{part}.c").read_text("utf-8") for part in PARTS),
    extra_compile_args=["-O2", "-Wall"],
)

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    ffibuilder.compile(verbose=False)
