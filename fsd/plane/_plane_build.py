"""Build ``fsd.plane._plane``: the data plane, in C11.

``python fsd/plane/_plane_build.py`` compiles it in place. cffi releases the GIL around every call.
``FSD_SANITIZE=1`` builds it with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_SOURCES = sorted(path for path in _HERE.glob("*.c") if not path.name.startswith("_"))
_SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


def _declarations() -> str:
    text = re.sub(r"/\*.*?\*/", "", (_HERE / "face.h").read_text(), flags=re.DOTALL)
    return text


ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "fsd.plane._plane",
    '#include "face_c.h"',
    sources=[str(path.relative_to(_ROOT)) for path in _SOURCES],
    include_dirs=["fsd/plane"],
    depends=[str(path.relative_to(_ROOT)) for path in sorted(_HERE.glob("*.h"))],
    extra_compile_args=[
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        *(_SANITIZE if os.environ.get("FSD_SANITIZE") else ["-O2"]),
    ],
    extra_link_args=["-fsanitize=address,undefined"] if os.environ.get("FSD_SANITIZE") else ["-pthread"],
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    ffibuilder.compile(verbose=False)
