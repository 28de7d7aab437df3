"""Import a root filesystem as an image, and make a container of it; podman sees both.

Run as root: python examples/import_and_fill.py GRAPHROOT RUNROOT ROOTFS.tar[.gz|.zst|.xz]
"""

from __future__ import annotations

import sys

from store.config import StoreOptions
from store.errors import NotPristine
from store.fill import fill
from store.oci import import_rootfs
from store.store import Store


def main(graphroot: str, runroot: str, archive: str) -> None:
    with Store(StoreOptions(graphroot=graphroot, runroot=runroot)) as store:
        with open(archive, "rb") as file:
            image = import_rootfs(store, file, "example", config={"Env": ["PATH=/bin", "GREETING=hello"]})
        print(f"{image.names[0]} is image {image.id[:12]}")

        store.create_container(names=["web"])  # empty, as `mkdir containers/web` makes it
        container = fill(store, "web", "example")  # as `echo example > containers/web/from`
        root = store.driver.get(container.layer)
        print(f"web has {', '.join(sorted(entry.name for entry in root.iterdir()))}")

        try:
            fill(store, "web", "example")
        except NotPristine as refusal:
            print(f"a second time is refused: {refusal}")


if __name__ == "__main__":
    main(*sys.argv[1:])
