"""Load the sanitized data plane instead of the normal one, in this process and the Pythons it starts.

Python imports this at its start when the directory is on ``PYTHONPATH``; ``FSD_SANITIZED`` says what to load.
Other programs are started without the sanitizers' runtime.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

MODULE = "fsd.plane._plane"


class Finder:
    """Finds one module, at a path of its own."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        place = Path(os.environ["FSD_SANITIZED"])
        if not place.is_file():
            raise ImportError(f"no sanitized data plane: {place}")
        return importlib.util.spec_from_file_location(name, place)


sys.meta_path.insert(0, Finder)
os.environ.pop("LD_PRELOAD", None)
sys.executable = str(Path(__file__).with_name("python"))
