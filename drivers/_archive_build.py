"""Build ``drivers._archive``: checksums and the extraction loop, in C.

``python drivers/_archive_build.py`` compiles it in place. cffi releases the GIL around every call.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

CDEF = """
uint64_t fsd_crc64(uint64_t crc, const uint8_t *data, size_t size);
"""

_HERE = Path(__file__).resolve().parent

ffibuilder = FFI()
ffibuilder.cdef(CDEF)
ffibuilder.set_source(
    "drivers._archive",
    '#include "_archive.h"',
    sources=["drivers/_archive_impl.c"],
    include_dirs=["drivers"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    import os

    os.chdir(_HERE.parent)
    ffibuilder.compile(verbose=False)
