"""Listings and lookups of the containers-storage command line."""

from __future__ import annotations

from store.glance import digests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fsd.storage_context import Run
    from store.glance import Glance

    Record = dict[str, Any]

BASE = "(base)"


# -- lists ---------------------------------------------------------------------------------------


def layers(run: Run) -> int:
    """``layers``: IDs with names, and who uses each; or a tree; or the records."""
    if run.json:
        return _print_table(run, "layers")
    glance = run.glance()
    images: dict[str, list[Record]] = {}
    for image in glance.tables["images"]:
        for layer_id in (image.get("layer", ""), *image.get("mapped-layers", ())):
            images.setdefault(layer_id, []).append(image)
    containers = {container.get("layer", ""): container for container in glance.tables["containers"]}
    if run.on("tree"):
        run.say(layer_tree(glance, images, containers))
        return 0
    lines = []
    for layer in glance.tables["layers"]:
        layer_id = layer["id"]
        lines.append(layer_id)
        lines += [f"\tname: {name}" for name in layer.get("names", ())]
        for image in images.get(layer_id, ()):
            lines.append(f"\timage: {image['id']}")
            lines += [f"\t\tname: {name}" for name in image.get("names", ())]
        if (container := containers.get(layer_id)) is not None:
            lines.append(f"\tcontainer: {container['id']}")
            lines += [f"\t\tname: {name}" for name in container.get("names", ())]
    return _print(run, lines)


def images(run: Run) -> int:
    """``images``: IDs with names, digests and keys of big data."""
    if run.json:
        return _print_table(run, "images", empty="null")
    found = run.glance(("images",)).tables["images"]
    return _print(run, _image_lines(found, run.on("quiet")))


def images_by_digest(run: Run) -> int:
    """``images-by-digest``: the images known by a digest."""
    wanted = run.args[0]
    check_digest(run, wanted, wanted)
    every = run.glance(("images",)).tables["images"]
    found = [image for image in every if wanted in digests(image)]
    if run.json:
        return print_records(run, "images", found)
    return _print(run, _image_lines(found, run.on("quiet")))


def check_digest(run: Run, text: str, context: str) -> None:
    """Fail unless ``text`` is a digest; the original's build knows no algorithm but one."""
    algorithm, _, value = text.partition(":")
    if not value or not value.isalnum():
        run.fail(f"{context}: invalid checksum digest format")
    if algorithm != "sha256":
        run.fail(f"{context}: unsupported digest algorithm")
    if len(value) != 64:
        run.fail(f"{context}: invalid checksum digest length")
    if set(value) - set("0123456789abcdef"):
        run.fail(f"{context}: invalid checksum digest format")


def _image_lines(found: list[Record], quiet: bool) -> list[str]:
    lines = []
    for image in found:
        lines.append(image["id"])
        if quiet:
            continue
        lines += [f"\tname: {name}" for name in image.get("names", ())]
        lines += [f"\tdigest: {digest}" for digest in digests(image)]
        lines += [f"\tdata: {key}" for key in image.get("big-data-names", ())]
    return lines


def containers(run: Run) -> int:
    """``containers``: IDs with names and keys of big data."""
    if run.json:
        return _print_table(run, "containers")
    found = run.glance(("containers",)).tables["containers"]
    lines = []
    for container in found:
        lines.append(container["id"])
        lines += [f"\tname: {name}" for name in container.get("names", ())]
        lines += [f"\tdata: {key}" for key in container.get("big-data-names", ())]
    return _print(run, lines)


def _print(run: Run, lines: list[str]) -> int:
    if lines:
        run.say("\n".join(lines) + "\n")
    return 0


def _print_table(run: Run, kind: str, *, empty: str = "[]") -> int:
    """Print a whole table as JSON: the text of its file, where that says the same."""
    glance = run.glance((kind,))
    if kind in glance.texts:
        run.say(glance.texts[kind].rstrip() + "\n")
        return 0
    return print_records(run, kind, glance.tables[kind], empty=empty)


def print_records(run: Run, kind: str, found: list[Record], *, empty: str = "[]") -> int:
    """Print records as the original does: known keys, in its order."""
    if not found:
        run.say(f"{empty}\n")
        return 0
    from fsd.storage_json import record_text

    run.say("[" + ",".join(record_text(kind, record) for record in found) + "]\n")
    return 0


# -- single objects ------------------------------------------------------------------------------


def layer(run: Run) -> int:
    """``layer``: one or more layers; exit code 1 if one of them is missing."""
    glance = run.glance(("layers",))
    found = [r for key in run.args if (r := glance.resolve("layers", key)) is not None]
    code = int(len(found) != len(run.args))
    if run.json:
        print_records(run, "layers", found)
        return code
    lines = []
    for record in found:
        lines.append(f"ID: {record['id']}")
        for kind in ("uid", "gid"):
            for m in record.get(f"{kind}map") or ():
                ids = f"container={m['container_id']}, host={m['host_id']}, size={m['size']}"
                lines.append(f"{kind.upper()} mapping: ({ids})")
        if record.get("parent"):
            lines.append(f"Parent: {record['parent']}")
        lines += [f"Name: {name}" for name in record.get("names", ())]
    _print(run, lines)
    return code


def exists(run: Run) -> int:
    """``exists``: exit code 0 if all of the arguments are objects, of the kinds asked for."""
    glance = run.glance()
    wanted = [f"{kind}s" for kind in ("layer", "image", "container") if run.on(kind)]
    there = {key: glance.anything(key) is not None for key in run.args}
    if run.json:
        run.dump(dict(sorted(there.items())))
    elif not run.on("quiet"):
        _print(run, [f"{key}: {str(known).lower()}" for key, known in there.items()])
    as_wanted = all(glance.resolve(kind, key) is not None for kind in wanted for key in there)
    return int(not (all(there.values()) and as_wanted))


def metadata(run: Run) -> int:
    """``metadata``: the caller's text of each object."""
    glance = run.glance()
    found: dict[str, str] = {}
    for key in run.args:
        record = glance.anything(key)
        if record is not None:
            found[key] = record.get("metadata", "").removesuffix("\n")
    if run.json:
        run.dump(dict(sorted(found.items())))
    elif run.on("quiet"):
        _print(run, [found.get(key, "") for key in run.args])
    else:
        _print(run, [f"{key}: {found.get(key, '')}" for key in run.args])
    return int(not all(key in found for key in run.args))


def get_names(run: Run) -> int:
    """``get-names``: the names of one object."""
    record = run.glance().anything(run.args[0])
    if record is None:
        run.fail("layer not known")
    names = record.get("names", [])
    if run.json:
        run.dump(names)
        return 0
    return _print(run, names)


def list_layer_data(run: Run) -> int:
    """``list-layer-data``: keys of a layer's big data."""
    return _list_data(run, "layers", "layer not known")


def list_image_data(run: Run) -> int:
    """``list-image-data``: keys of an image's big data."""
    return _list_data(run, "images", f'locating image with ID "{run.args[0]}": image not known')


def list_container_data(run: Run) -> int:
    """``list-container-data``: keys of a container's big data."""
    return _list_data(run, "containers", "container not known")


def _list_data(run: Run, kind: str, unknown: str) -> int:
    record = run.glance((kind,)).resolve(kind, run.args[0])
    if record is None:
        run.fail(unknown)
    keys = record.get("big-data-names", [])
    if run.json:
        run.dump(keys or None)
        return 0
    return _print(run, keys)


# -- the tree ------------------------------------------------------------------------------------


def layer_tree(glance: Glance, images: dict[str, list[Record]], containers: dict[str, Record]) -> str:
    """Layers as a tree below their parents, with notes on who uses each."""
    children: dict[str, list[Record]] = {}
    for record in glance.tables["layers"]:
        children.setdefault(record.get("parent") or BASE, []).append(record)
    known = {record["id"] for record in glance.tables["layers"]}
    roots = sorted((parent for parent in children if parent not in known), key=lambda p: len(children[p]))
    lines: list[str] = []
    for root in roots:
        lines.append(root)
        _branches(children[root], "", children, lambda r: _notes(r, glance, images, containers), lines)
    return "".join(f"{line}\n" for line in lines)


def _branches(siblings: list[Record], indent: str, children: Any, notes: Any, lines: list[str]) -> None:
    pending = [(record, indent, record is siblings[-1]) for record in reversed(siblings)]
    while pending:
        record, before, last = pending.pop()
        lines.append(f"{before}{'└' if last else '├'}─{record['id']}")
        below = f"{before}{' ' if last else '│'} "
        lines += [f"{below}{note}" for note in notes(record)]
        kids = children.get(record["id"], [])
        pending += [(kid, below, kid is kids[-1]) for kid in reversed(kids)]


def _notes(record: Record, glance: Glance, images: Any, containers: Any) -> list[str]:
    notes = [f"name: {name}" for name in record.get("names", ())]
    if record["id"] in glance.mounts:
        notes.append(f"mount: {glance.mounts[record['id']]}")
    for image in images.get(record["id"], ()):
        notes.append(f"image: {image['id']}")
        notes += [f"image name: {name}" for name in image.get("names", ())]
    if (container := containers.get(record["id"])) is not None:
        notes.append(f"container: {container['id']}")
        notes += [f"container name: {name}" for name in container.get("names", ())]
    return notes
