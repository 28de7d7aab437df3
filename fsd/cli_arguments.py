"""Arguments and options that several verbs take, and the groups verbs are listed in."""

from __future__ import annotations

from fsd.cli_table import CONTAINER, FILE, IMAGE, OBJECT, SOURCE, Argument, Option

DAEMON, LOOK, OBJECTS = "Daemon", "Looking", "Objects"
CONTAINERS, IMAGES, UPKEEP, HELP = "Containers", "Images", "Upkeep", "Help"
GROUPS = (DAEMON, LOOK, OBJECTS, CONTAINERS, IMAGES, UPKEEP, HELP)

QUIET = Option("-q --quiet", "print full IDs only")
THE_OBJECT = Argument(
    "OBJECT", "image, container or layer; images/X, containers/X, layers/X say which", "", OBJECT
)
THE_OBJECTS = Argument("OBJECT", THE_OBJECT.help, "+", OBJECT)
THE_CONTAINER = Argument("CONTAINER", "name, ID or beginning of an ID", "", CONTAINER)
THE_IMAGE = Argument("IMAGE", "name, short name, ID, beginning of an ID, or digest", "", IMAGE)
TREE = "image, layer, container, or a snapshot as CONTAINER@SNAPSHOT"
PLACE = Argument("OBJECT[:PATH]", f"{TREE}, and a path in it", "", SOURCE)
OUTPUT = Option("-o --output", "write to this file instead of standard output", "FILE", complete=FILE)
TAR = Option(
    "--tar", "write the changes as an archive to this file (- for standard output)", "FILE", complete=FILE
)
NO_POOL = Option("--no-pool", "never make the embedded pool")
REGISTRY = (
    Option("--tls-verify", "whether the registry must prove who it is", choices=("true", "false")),
    Option("--authfile", "where the registry's password is", "FILE", complete=FILE),
    Option("--creds", "user and password for the registry", "USER[:PASSWORD]"),
    Option("--insecure-policy", "accept images whatever the signature policy says"),
)
PRUNED = (
    "stopped-containers",
    "dangling-images",
    "unused-images",
    "expired-trash",
    "orphans",
    "temporary-files",
    "all",
)
"""What ``prune`` looks for; a test holds it to the store's own kinds."""
