"""The subcommands of the containers-storage command line, in the order its help lists them.

A command is a row: its names, its arguments as help shows them, what it does, how many arguments it takes,
its flags, and where its action is. Actions are imported when they run.
"""

from __future__ import annotations

from fsd.storage_flags import Flag

JSON = Flag("json j", bool, "Prefer JSON output")
_WRITE_TO = Flag("file f", str, "Write data to file")
_READ_FROM = Flag("file f", str, "Read data from file")
_QUIET_IDS = Flag("quiet q", bool, "Only print IDs")
_METADATA = (Flag("metadata m", str, "Metadata"), Flag("metadata-file f", str, "Metadata File"))
_NEW_NAME = Flag("name n", list, "New name")
_INPUT = Flag("file f", str, "Read from file instead of stdin")
_MAPPINGS = (
    Flag("hostuidmap", bool, "Force host UID map"),
    Flag("hostgidmap", bool, "Force host GID map"),
    Flag("uidmap", str, "UID map"),
    Flag("gidmap", str, "GID map"),
    Flag("subuidmap", str, "subuid UID map for a user"),
    Flag("subgidmap", str, "subgid GID map for a group"),
)
_NEW_LAYER = (
    Flag("label l", str, "Mount Label"),
    Flag("name n", list, "Layer name"),
    Flag("id i", str, "Layer ID"),
    Flag("readonly r", bool, "Mark as read-only"),
    JSON,
    *_MAPPINGS,
)
_NEW_IMAGE = (
    Flag("name n", list, "Image name"),
    Flag("id i", str, "Image ID"),
    Flag("digest d", str, "Image Digest"),
    *_METADATA,
    JSON,
)
_NEW_CONTAINER = (
    Flag("name n", list, "Container name"),
    Flag("id i", str, "Container ID"),
    *_METADATA,
    JSON,
    *_MAPPINGS,
    Flag("volatile", bool, "Mark as volatile"),
)
_DIFF = (
    Flag("file f", str, "Write to file instead of stdout"),
    Flag("uncompressed u", bool, "Use no compression"),
    Flag("gzip c", bool, "Compress using gzip"),
    Flag("bzip2 bz2 b", bool, "Compress using bzip2 (not currently supported)"),
    Flag("xz x", bool, "Compress using xz (not currently supported)"),
)
_EXISTS = (
    Flag("quiet q", bool, "Don't print names"),
    Flag("layer l", bool, "Only succeed if the match is a layer"),
    Flag("image i", bool, "Only succeed if the match is an image"),
    Flag("container c", bool, "Only succeed if the match is a container"),
    JSON,
)
_MOUNT = (
    Flag("opt o", str, "Mount Options"),
    Flag("label l", str, "Mount Label"),
    Flag("ro r", bool, "Mount image readonly"),
    JSON,
)


class Command:
    """One subcommand; ``most`` of 0 is any number of arguments."""

    __slots__ = ("action", "arguments", "flags", "least", "module", "most", "names", "purpose")

    def __init__(
        self,
        names: str,
        where: str,
        arguments: str,
        purpose: str,
        least: int = 0,
        most: int = 0,
        flags: tuple[Flag, ...] = (),
    ) -> None:
        self.names = tuple(names.split())
        self.module, _, self.action = where.partition(".")
        self.arguments = arguments
        self.purpose = purpose
        self.least = least
        self.most = most
        self.flags = flags


_O = "[options [...]] "
_IMAGE, _CONTAINER, _LAYER = f"{_O}imageNameOrID", f"{_O}containerNameOrID", f"{_O}layerNameOrID"
_TWO_LAYERS = f"{_O}layerNameOrID [referenceLayerNameOrID]"
_ANY = "[LayerOrImageOrContainerNameOrID [...]]"
_NAMED = f"{_O}imageOrContainerNameOrID"
_J = (JSON,)

COMMANDS = (
    Command("container", "sizes.container", f"{_CONTAINER} [...]", "Examine a container", 1, 0, _J),
    Command(
        "list-container-data listcontainerdata",
        "show.list_container_data",
        _CONTAINER,
        "List data items that are attached to an container",
        1,
        1,
        _J,
    ),
    Command(
        "get-container-data getcontainerdata",
        "data.get_container_data",
        f"{_CONTAINER} dataName",
        "Get data that is attached to an container",
        2,
        0,
        (_WRITE_TO,),
    ),
    Command(
        "get-container-data-size getcontainerdatasize",
        "data.get_container_data_size",
        f"{_CONTAINER} dataName",
        "Get size of data that is attached to an container",
        2,
    ),
    Command(
        "get-container-data-digest getcontainerdatadigest",
        "data.get_container_data_digest",
        f"{_CONTAINER} dataName",
        "Get digest of data that is attached to an container",
        2,
    ),
    Command(
        "set-container-data setcontainerdata",
        "data.set_container_data",
        f"{_CONTAINER} dataName",
        "Set data that is attached to an container",
        2,
        0,
        (_READ_FROM,),
    ),
    Command(
        "get-container-dir getcontainerdir",
        "data.get_container_dir",
        _CONTAINER,
        "Find the container's associated data directory",
        1,
    ),
    Command(
        "get-container-run-dir getcontainerrundir",
        "data.get_container_run_dir",
        _CONTAINER,
        "Find the container's associated runtime directory",
        1,
    ),
    Command(
        "container-parent-owners",
        "sizes.container_parent_owners",
        f"{_CONTAINER} [...]",
        "Compute the set of unmapped parent UIDs and GIDs of the container",
        1,
        0,
        _J,
    ),
    Command("containers", "show.containers", "[options [...]]", "List containers", 0, 0, _J),
    Command(
        "copy",
        "copy.copy",
        f"{_O}[sourceLayerNameOrID:]/path [...] targetLayerNameOrID:/path",
        "Copy files or directories into a layer, possibly from another layer",
        2,
        0,
        (Flag("chown", str, "Set owner on new copies"), JSON),
    ),
    Command(
        "create-layer createlayer",
        "create.create_layer",
        f"{_O}[parentLayerNameOrID]",
        "Create a new layer",
        0,
        1,
        _NEW_LAYER,
    ),
    Command(
        "import-layer importlayer",
        "create.import_layer",
        f"{_O}[parentLayerNameOrID]",
        "Import a new layer",
        0,
        1,
        (*_NEW_LAYER, _INPUT),
    ),
    Command(
        "create-image createimage",
        "create.create_image",
        f"{_O}topLayerNameOrID",
        "Create a new image using layers",
        0,
        1,
        _NEW_IMAGE,
    ),
    Command(
        "create-container createcontainer",
        "create.create_container",
        f"{_O}parentImageNameOrID",
        "Create a new container from an image",
        1,
        1,
        _NEW_CONTAINER,
    ),
    Command(
        "delete",
        "delete.delete",
        _ANY,
        "Delete a layer or image or container, with no safety checks",
        1,
        0,
        _J,
    ),
    Command(
        "delete-layer deletelayer",
        "delete.delete_layer",
        "[LayerNameOrID [...]]",
        "Delete a layer, with safety checks",
        1,
        0,
        _J,
    ),
    Command(
        "delete-image deleteimage",
        "delete.delete_image",
        "[ImageNameOrID [...]]",
        "Delete an image, with safety checks",
        1,
        0,
        (Flag("test t", bool, "Only test removal"), JSON),
    ),
    Command(
        "delete-container deletecontainer",
        "delete.delete_container",
        "[ContainerNameOrID [...]]",
        "Delete a container, with safety checks",
        1,
        0,
        _J,
    ),
    Command("changes", "diff.changes", _TWO_LAYERS, "Compare two layers", 1, 2, _J),
    Command("diffsize diff-size", "diff.diffsize", _TWO_LAYERS, "Compare two layers", 1, 2),
    Command("diff", "diff.diff", _TWO_LAYERS, "Compare two layers", 1, 2, _DIFF),
    Command(
        "applydiff apply-diff", "create.applydiff", _TWO_LAYERS, "Apply a diff to a layer", 1, 1, (_INPUT,)
    ),
    Command("exists", "show.exists", _ANY, "Check if a layer or image or container exists", 1, 0, _EXISTS),
    Command("image", "sizes.image", f"{_IMAGE} [...]", "Examine an image", 1, 0, _J),
    Command(
        "list-image-data listimagedata",
        "show.list_image_data",
        _IMAGE,
        "List data items that are attached to an image",
        1,
        1,
        _J,
    ),
    Command(
        "get-image-data getimagedata",
        "data.get_image_data",
        f"{_IMAGE} dataName",
        "Get data that is attached to an image",
        2,
        0,
        (_WRITE_TO,),
    ),
    Command(
        "get-image-data-size getimagedatasize",
        "data.get_image_data_size",
        f"{_IMAGE} dataName",
        "Get size of data that is attached to an image",
        2,
    ),
    Command(
        "get-image-data-digest getimagedatadigest",
        "data.get_image_data_digest",
        f"{_IMAGE} dataName",
        "Get digest of data that is attached to an image",
        2,
    ),
    Command(
        "set-image-data setimagedata",
        "data.set_image_data",
        f"{_IMAGE} dataName",
        "Set data that is attached to an image (with sometimes wrong digest)",
        2,
        0,
        (_READ_FROM,),
    ),
    Command("images", "show.images", "[options [...]]", "List images", 0, 0, (JSON, _QUIET_IDS)),
    Command(
        "images-by-digest",
        "show.images_by_digest",
        f"{_O}DIGEST",
        "List images by digest",
        1,
        1,
        (JSON, _QUIET_IDS),
    ),
    Command("layer", "show.layer", f"{_LAYER} [...]", "Examine a layer", 1, 0, _J),
    Command(
        "layer-parent-owners",
        "sizes.layer_parent_owners",
        f"{_LAYER} [...]",
        "Compute the set of unmapped parent UIDs and GIDs of the layer",
        1,
        0,
        _J,
    ),
    Command(
        "list-layer-data listlayerdata",
        "show.list_layer_data",
        _LAYER,
        "List data items that are attached to a layer",
        1,
        1,
        _J,
    ),
    Command(
        "get-layer-data getlayerdata",
        "data.get_layer_data",
        f"{_O}layerID dataName",
        "Get data that is attached to a layer",
        2,
        0,
        (_WRITE_TO,),
    ),
    Command(
        "set-layer-data setlayerdata",
        "data.set_layer_data",
        f"{_O}layerID dataName",
        "Set data that is attached to a layer",
        2,
        0,
        (_READ_FROM,),
    ),
    Command(
        "layers",
        "show.layers",
        "[options [...]]",
        "List layers",
        0,
        0,
        (Flag("tree t", bool, "Use a tree"), JSON),
    ),
    Command(
        "metadata",
        "show.metadata",
        _ANY,
        "Retrieve layer, image, or container metadata",
        1,
        0,
        (Flag("quiet q", bool, "Omit names and IDs"), JSON),
    ),
    Command(
        "set-metadata setmetadata",
        "data.set_metadata",
        f"{_O}layerOrImageOrContainerNameOrID",
        "Set layer, image, or container metadata",
        1,
        1,
        _METADATA,
    ),
    Command(
        "mount", "mount.mount", f"{_O}LayerOrContainerNameOrID", "Mount a layer or container", 1, 0, _MOUNT
    ),
    Command(
        "unmount umount",
        "mount.unmount",
        "LayerOrContainerNameOrID",
        "Unmount an image, layer or container",
        1,
        0,
        (JSON, Flag("force f", bool, "Force the umount")),
    ),
    Command(
        "mounted",
        "mount.mounted",
        "LayerOrContainerNameOrID",
        "Check if a file system is mounted",
        1,
        0,
        _J,
    ),
    Command(
        "get-names getnames",
        "show.get_names",
        _NAMED,
        "Get layer, image, or container name or names",
        1,
        0,
        _J,
    ),
    Command(
        "add-names addnames",
        "data.add_names",
        _NAMED,
        "Add layer, image, or container name or names",
        1,
        0,
        (_NEW_NAME, JSON),
    ),
    Command(
        "set-names setnames",
        "data.set_names",
        _NAMED,
        "Set layer, image, or container name or names",
        1,
        0,
        (_NEW_NAME, JSON),
    ),
    Command(
        "shutdown",
        "mount.shutdown",
        "",
        "Shut down layer storage",
        0,
        0,
        (JSON, Flag("force f", bool, "Unmount mounted layers first")),
    ),
    Command("status", "mount.status", "", "Check on graph driver status", 0, 0, _J),
    Command("version", "mount.version", "", "Return containers-storage version information", 0, 0, _J),
    Command("wipe", "delete.wipe", "", "Wipe all layers, images, and containers", 0, 0, _J),
)

BY_NAME = {name: command for command in COMMANDS for name in command.names}
SHARED = frozenset({"status", "images", "containers", "layers", "diff", "changes", "copy", "metadata"})
"""Verbs that fsd's own command line has too."""
