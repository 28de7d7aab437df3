"""The daemon that serves a container store as files, and its command line.

::

    cli, cli_*, doctor, output    the command line; imports nothing of FUSE
    pool, mounts                  the embedded btrfs; the system's mount table
    runfile, sdnotify             which daemon serves a store; telling a supervisor
    daemon                        mount lifecycle: start, signals, readiness, clean unmount
    operations, inodes, handles   pyfuse3's side: handlers, numbers, open files
    tree, nodes, site, render     what the mount looks like and how attributes are made
    control                       writable attributes as commands
    rootfs, bursts                real directory trees; when a write takes a snapshot
    followers, reloading          what happens unasked; a storage.conf that was edited
    errnos                        exceptions to errno, and the barrier that applies it
"""

__version__ = "0.1.0"
