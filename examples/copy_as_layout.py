"""Write an image as an OCI image layout, which skopeo, umoci and buildah read.

Run as root: python examples/copy_as_layout.py GRAPHROOT RUNROOT IMAGE DIRECTORY
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from store.config import StoreOptions
from store.layout import oci_layout
from store.store import Store


def main(graphroot: str, runroot: str, image: str, directory: str) -> None:
    with Store(StoreOptions(graphroot=graphroot, runroot=runroot)) as store:
        for name, file in oci_layout(store, image).items():
            path = Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open() as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            print(f"{file.size:>12,}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
