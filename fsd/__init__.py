"""The daemon that serves a container store as files, and its command line.

::

    entry, cli, cli_*, doctor, output   the command line; imports nothing of FUSE. cli.py has its map
    storage_*                 the command line of containers-storage; storage_cli.py has its map
    mount_helper              what mount(8) runs
    pool, mounts              the embedded btrfs; the system's mount table
    runfile, sdnotify         which daemon serves a store; telling a supervisor
    settings                  fsd.toml

    daemon                    the life of a mount: start, signals, readiness, clean unmount
    followers, watch          what happens unasked: others' changes, old snapshots; inotify(7)
    reloading                 a storage.conf or fsd.toml that was edited

    operations, errnos        pyfuse3's side: handlers, each one call; exceptions to errno
    inodes, listings, opened  node numbers; open directories; open files
    publisher, rendering      objects of the tree rendered ahead, for the plane to answer with
    processes                 what proc(5) says of who uses the mount

    tree, nodes, site         what the mount looks like, as data; kinds of entries; what all of them share
    live, naming, lengths     the store now and when it changed; names to paths; sizes of JSON
    render, graph, health, metrics   what attributes hold
    tables, children, bigdata, snapshots, drafts, removed, images, imports   directories of their own kinds
    layouts, compared, diffs, budget   images for other tools; what differs between two trees
    contents, virtual, uploads, events   what is read from and written to large files and streams
    control                   writes as commands, each one call of the store

    views, exports, handles   which real trees are shown, and how; what tells one from another
    realtrees                 refusals in them, and who must not empty them
    bursts, burst_policy, prepared   when a write takes a snapshot, and those that wait ready for it
    plane/                    the data plane: requests on real trees, in C; imports nothing else of fsd
"""

__version__ = "0.1.0"
