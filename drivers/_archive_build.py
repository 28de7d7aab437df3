"""Build ``drivers._archive``: checksums and the unpacking loop, in C.

``python drivers/_archive_build.py`` compiles it in place. cffi releases the GIL around every call.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_PARTS = ("crc", "seen", "parse", "unpack", "assemble")


def _declarations() -> str:
    """The interface as cffi reads it: the header without preprocessor lines, constants as enums."""
    text = (_HERE / "_archive.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    constants = re.findall(r"^#define (FSD_[A-Z]+) ('.')", text, flags=re.MULTILINE)
    plain = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return plain + "".join(f"#define {name} {ord(value[1])}\n" for name, value in constants)


ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "drivers._archive",
    '#include "_archive.h"',
    sources=[f"drivers/_archive_{part}.c" for part in _PARTS],
    include_dirs=["drivers"],
    depends=["drivers/_archive.h", "drivers/_archive_unpack.h"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    os.chdir(_HERE.parent)
    ffibuilder.compile(verbose=False)
