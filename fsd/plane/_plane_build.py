"""Build ``fsd.plane._plane``: the data plane, in C11.

``python fsd/plane/_plane_build.py`` compiles it in place. cffi releases the GIL around every call.
``FSD_SANITIZE=address,undefined`` (or ``thread``) builds it with these sanitizers, beside the normal one:
``tests/sanitized`` on ``PYTHONPATH`` makes Python load it instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_SOURCES = sorted(path for path in _HERE.glob("*.c") if not path.name.startswith("_"))
_SANITIZERS = os.environ.get("FSD_SANITIZE", "")
_SANITIZE = [f"-fsanitize={_SANITIZERS}"] if _SANITIZERS else []


def _declarations() -> str:
    text = re.sub(r"/\*.*?\*/", "", (_HERE / "face.h").read_text(), flags=re.DOTALL)
    return text


def _named(path: Path) -> str:
    """As setuptools wants it; a sanitized build happens elsewhere."""
    return str(path if _SANITIZERS else path.relative_to(_ROOT))


ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "fsd.plane._plane",
    '#include "face_c.h"',
    sources=[_named(path) for path in _SOURCES],
    include_dirs=[_named(_HERE)],
    depends=[_named(path) for path in sorted(_HERE.glob("*.h"))],
    extra_compile_args=[
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        *(
            [*_SANITIZE, "-fno-omit-frame-pointer", "-fno-sanitize-recover", "-g", "-O1"]
            if _SANITIZE
            else ["-O2"]
        ),
    ],
    extra_link_args=["-pthread", *_SANITIZE],
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    place = _ROOT / "build" / f"sanitized-{_SANITIZERS.replace(',', '-')}" if _SANITIZERS else _ROOT
    place.mkdir(parents=True, exist_ok=True)
    ffibuilder.compile(tmpdir=str(place), verbose=False)
