"""Print a store's images with their layers, and its containers.

Run as root: python examples/list_store.py [GRAPHROOT RUNROOT]
"""

from __future__ import annotations

import sys

from store.config import StoreOptions
from store.store import Store


def main(graphroot: str = "/var/lib/containers/storage", runroot: str = "/run/containers/storage") -> None:
    with Store(StoreOptions(graphroot=graphroot, runroot=runroot)) as store:
        catalog = store.catalog()  # one consistent view, and no lock held
        for image in catalog.images:
            print(f"image {image.names[0] if image.names else '<none>'}  {image.id[:12]}")
            for layer in catalog.chain(image.layer):
                print(f"    layer {layer.id[:12]}  {layer.size:>12,} bytes")
        for container in catalog.containers:
            made_from = catalog.image(container.image)
            source = made_from.names[0] if made_from and made_from.names else "nothing"
            mounted = catalog.mount_count(container.layer)
            print(f"container {', '.join(container.names)}  from {source}  mounted {mounted} times")


if __name__ == "__main__":
    main(*sys.argv[1:])
