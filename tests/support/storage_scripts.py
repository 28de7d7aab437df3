"""Scripts for the command line of containers-storage: what is tried on the real program and on ours.

A script is a list of command lines in words. ``{A}`` … ``{F}`` are layer IDs, ``{I}`` and ``{K}`` image IDs,
``{D}`` a container ID; ``{tar}``, ``{tgz}``, ``{more}``, ``{owned}``, ``{text}`` and ``{dir}`` are files that
exist. A line that begins with ``<FILE`` gets that file as its standard input. ``{home}`` is a directory
of each program.

``storage_changes`` has the scripts that change a store.
"""

from __future__ import annotations

IDS = {letter: letter.lower() * 64 for letter in "ABCDEF"} | {"I": "1a" * 32, "K": "2b" * 32}

FILL = """
create-layer -i {A} -n base -n second
import-layer -f {tar} -i {B} -n child base
import-layer -f {tgz} -i {C} -n grandchild child
create-layer -i {E} -r
create-image -i {I} -n img -m about child
create-image -i {K} -n top -n other grandchild
set-image-data -f {text} img manifest
set-image-data -f {text} img Key
create-container -i {D} -n box -m text img
<{text} set-container-data box key
<{text} set-layer-data base key
""".strip().splitlines()

LOOKS = {
    "layers": ["layers", "layers -t", "layers --tree"],
    "layers as JSON": ["layers -j"],
    "images": ["images", "images -q", "images --quiet"],
    "images as JSON": ["images -j"],
    "containers": ["containers", "containers -j"],
    "layer": ["layer base", "layer {A} child", "layer bbb", "layer -j grandchild base"],
    "layer that is missing": ["layer nosuch", "layer -j nosuch", "layer -j base nosuch"],
    "image": ["image img", "image 1a1", "image -j img top"],
    "image that is missing": ["image nosuch", "image img nosuch", "image -j nosuch"],
    "container": ["container box", "container ddd", "container -j box"],
    "container that is missing": ["container nosuch", "container -j box nosuch"],
    "exists": ["exists base", "exists img", "exists box", "exists nosuch", "exists bbb"],
    "exists quietly": ["exists -q base", "exists --quiet nosuch"],
    "exists as JSON": ["exists -j base nosuch img", "exists --json {D}"],
    "exists of a kind": ["exists -l img", "exists -i img", "exists -c img", "exists -l -j base"],
    "metadata": ["metadata img", "metadata -q img box", "metadata base", "metadata img nosuch"],
    "metadata as JSON": ["metadata -j img box nosuch", "metadata --json base"],
    "names": ["get-names base", "getnames top", "get-names -j img", "get-names {E}", "get-names -j {E}"],
    "names of nothing": ["get-names nosuch", "get-names -j nosuch"],
    "keys of images": ["list-image-data img", "listimagedata -j img", "list-image-data -j top"],
    "keys of nothing": ["list-image-data nosuch", "list-container-data nosuch", "list-layer-data nosuch"],
    "keys of containers": ["list-container-data box", "list-container-data -j box"],
    "keys of layers": ["list-layer-data base", "list-layer-data -j base", "list-layer-data -j child"],
    "data of images": [
        "get-image-data img manifest",
        "get-image-data img Key extra",
        "get-image-data-size img Key",
        "get-image-data-digest img manifest",
    ],
    "data of images that is missing": [
        "get-image-data img nokey",
        "get-image-data-size img nokey",
        "get-image-data-digest img nokey",
        "get-image-data nosuch key",
        "get-image-data-size nosuch key",
    ],
    "data of containers": [
        "get-container-data box key",
        "getcontainerdatasize box key",
        "get-container-data-digest box key",
    ],
    "data of containers that is missing": [
        "get-container-data box nokey",
        "get-container-data-size box nokey",
        "get-container-data-digest box nokey",
        "get-container-data nosuch key",
    ],
    "data of layers": ["get-layer-data base key", "get-layer-data base nokey", "get-layer-data nosuch key"],
    "data into a file": ["get-layer-data -f {dir}/out base key", "get-image-data -f /nosuch/x img Key"],
    "directories": ["get-container-dir box", "get-container-run-dir box", "getcontainerdir nosuch"],
    "images by digest": [
        "images-by-digest sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "images-by-digest -q sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "images-by-digest -j sha256:0000b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "images-by-digest bad",
        "images-by-digest sha256:12",
    ],
    "changes": ["changes child", "changes grandchild", "changes -j grandchild", "changes base"],
    "changes against another layer": ["changes grandchild base", "changes -j child base"],
    "changes of nothing": ["changes nosuch", "diffsize nosuch", "diff nosuch"],
    "sizes of differences": ["diffsize child", "diff-size grandchild", "diffsize grandchild base"],
    "difference as it came": ["diff -u child", "diff --uncompressed grandchild", "diff -u {E}"],
    "difference made anew": ["diff -u grandchild base"],
    "compressions there are not": ["diff -b child", "diff --bz2 child", "diff -x child"],
    "owners": ["container-parent-owners box", "container-parent-owners -j box", "layer-parent-owners base"],
    "owners of nothing": ["container-parent-owners nosuch", "layer-parent-owners -j base nosuch"],
    "mounted": ["mounted box", "mounted -j box", "mounted nosuch", "mounted -j nosuch base"],
    "version": ["version", "version -j"],
    "status": ["status", "status -j"],
    "too few arguments": ["layer", "create-container", "delete", "set-image-data img", "images-by-digest"],
    "too many arguments": ["create-layer a b", "list-image-data a b", "applydiff a b", "changes a b c"],
    "arguments nobody reads": ["images x", "layers y", "images -- -q", "get-names base x"],
    "flags there are not": ["layers --foo", "images -x", "layers -jx", "containers --tree"],
    "flags without value": ["create-layer -n", "create-layer --id", "layers -g"],
    "flags in groups": ["layers -jt", "images -qj", "images -jq"],
    "flags with values": ["layers -j=true", "layers -j=false", "layers -j=maybe", "images --quiet=1"],
    "help": ["layers --help", "create-image -h", "mount -help", "status --help", "exists --help"],
    "no such command": ["nosuch", "Layers", "layer-s"],
}

MAPPED = [
    "create-layer -i {A} --uidmap 0:1000:5 --gidmap 0:2000:5",
    "create-layer -j -i {B} {A}",
    "layer {A}",
    "layer-parent-owners {A}",
    "<{tar} import-layer -i {C} --uidmap 0:3000:9 --gidmap 0:4000:9",
    "create-image -i {I} -n img {A}",
    "create-container -i {D} --uidmap 0:1000:5 --gidmap 0:2000:5 img",
    "create-container -n other --uidmap 0:5000:9 --gidmap 0:6000:9 img",
    "create-container -n again --uidmap 0:5000:9 --gidmap 0:6000:9 img",
    "container-parent-owners {D}",
    "container-parent-owners -j other",
    "layers -j",
    "images -j",
    "containers -j",
    "delete-container other",
    "delete-container again",
    "delete-container {D}",
    "delete-image img",
    "layers -j",
]
"""Not the same everywhere: on btrfs the original leaves a mapped layer's root directory to the host's
root, and on overlay it shifts owners when it mounts."""

PARTLY_MAPPED = [
    "<{owned} import-layer -i {E}",
    "create-image -i {K} -n img {E}",
    "create-container -n few --uidmap 0:1000:5 --gidmap 0:1000:5 img",
    "create-container -n users-only --uidmap 0:1000:5 img",
    "create-layer --uidmap 1:1000:5 --gidmap 1:1000:5",
    "layers -j",
]
"""With owners outside the mappings. (The root directory of a mapped copy stays the host root's there.)"""

LAST = {
    "options before the command": [
        "--debug create-layer -i {A}",
        "-D layers -j",
        "-D=false layers",
        "-debug=maybe layers",
        "-j layers",
        "--json layers",
        "--nosuch layers",
        "--storage-opt",
        "layers --debug",
        "layers -D -j",
    ],
    "options of other drivers": [
        "--storage-opt nosuch.key=1 layers",
        "layers --storage-opt nosuch",
        "-s nosuch layers",
        "layers -s nosuch",
    ],
    "digests of images": [
        "create-image -i {I} -d sha256:" + "a" * 64 + " -n one",
        "create-image -i {K} -d sha256:" + "a" * 64 + " -n two",
        "images-by-digest sha256:" + "a" * 64,
        "images-by-digest -q sha256:" + "a" * 64,
        "images-by-digest sha256:" + "A" * 64,
        "images-by-digest md5:" + "a" * 32,
        "images-by-digest sha512:" + "a" * 128,
        "images-by-digest sha512:aa",
        "create-image -d sha512:" + "a" * 64,
        "image one",
        "image -j two",
    ],
    "archive with everything": [
        "<{tar} import-layer -i {A}",
        "<{tgz} import-layer -i {B} {A}",
        "<{more} applydiff {B}",
        "changes {B}",
        "changes -j {B} {A}",
        "diffsize {B}",
        "diff -u {B}",
        "copy {B}:/d {home}/d",
        "diffsize {B} {B}",
    ],
    "copies": [
        "create-layer -i {A} -n x",
        "copy {text} x:/file",
        "copy {dir} x:/tree",
        "copy --chown 5:6 {dir} x:/owned",
        "copy --chown 7 {text} x:/sub/dir/file",
        "copy x:/tree x:/again",
        "copy nosuch:/x x:/y",
        "copy -j {text} x:/quiet",
        "copy {text} nosuch:/y",
        "copy --chown a {text} x:/y",
    ],
}
"""Scripts about options and archives, which change a store too."""
