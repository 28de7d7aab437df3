"""Builds ``drivers._btrfs``: the interface of ``<linux/btrfs.h>`` (cffi, API mode).

Structure layouts, sizes and ioctl numbers are computed by the compiler from the kernel's own headers.
``HAVE_*`` constants tell which parts the headers at build time knew; interfaces younger than the headers
are declared here from the kernel's user-space ABI, which does not change, and the running kernel has the
last word (ENOTTY, EINVAL).

Run as a script it compiles the drivers' extension modules in place.
"""

from __future__ import annotations

import runpy
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

# Every call goes through functions returning -errno: one crossing, and errno cannot be lost between
# the system call and the interpreter. cffi releases the GIL around each of them.
SOURCE = r"""
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <linux/magic.h>

#ifdef BTRFS_SEND_FLAG_VERSION
#define HAVE_SEND_VERSION 1
#else
#define HAVE_SEND_VERSION 0
#define BTRFS_SEND_FLAG_VERSION 0x8
#define BTRFS_SEND_FLAG_COMPRESSED 0x10
#endif

#ifdef BTRFS_IOC_SNAP_DESTROY_V2
#define HAVE_SNAP_DESTROY_V2 1
#else
#define HAVE_SNAP_DESTROY_V2 0
#define BTRFS_SUBVOL_SPEC_BY_ID (1ULL << 4)
#define BTRFS_IOC_SNAP_DESTROY_V2 _IOW(BTRFS_IOCTL_MAGIC, 63, struct btrfs_ioctl_vol_args_v2)
#endif

/* Linux 6.7 */
#ifdef BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
#define HAVE_SIMPLE_QUOTA 1
#else
#define HAVE_SIMPLE_QUOTA 0
#define BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA 4
#endif
#ifndef BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE
#define BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE (1ULL << 3)
#endif

/* Linux 6.13 */
#ifdef BTRFS_IOC_SUBVOL_SYNC_WAIT
#define HAVE_SUBVOL_SYNC_WAIT 1
#else
#define HAVE_SUBVOL_SYNC_WAIT 0
struct btrfs_ioctl_subvol_wait { __u64 subvolid; __u32 mode; __u32 count; };
#define BTRFS_SUBVOL_SYNC_COUNT 2
#define BTRFS_IOC_SUBVOL_SYNC_WAIT _IOW(BTRFS_IOCTL_MAGIC, 65, struct btrfs_ioctl_subvol_wait)
#endif

static int btrfs_call(int fd, unsigned long request, void *argument)
{
    int result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

static int btrfs_send(int fd, int write_fd, uint64_t parent, uint64_t *clones, uint64_t clone_count,
                      uint64_t flags, uint32_t version)
{
    struct btrfs_ioctl_send_args args;
    memset(&args, 0, sizeof args);
    args.send_fd = write_fd;
    args.parent_root = parent;
    args.clone_sources = (__u64 *)clones;
    args.clone_sources_count = clone_count;
    args.flags = flags;
#if HAVE_SEND_VERSION
    args.version = version;
#else
    if (version)
        return -EINVAL;
#endif
    return ioctl(fd, BTRFS_IOC_SEND, &args) < 0 ? -errno : 0;
}

static int btrfs_limit(int fd, uint64_t qgroupid, uint64_t flags, uint64_t max_rfer, uint64_t max_excl)
{
    struct btrfs_ioctl_qgroup_limit_args args;
    memset(&args, 0, sizeof args);
    args.qgroupid = qgroupid;
    args.lim.flags = flags;
    args.lim.max_rfer = max_rfer;
    args.lim.max_excl = max_excl;
    return btrfs_call(fd, BTRFS_IOC_QGROUP_LIMIT, &args);
}

static int has_nested(int fd)
{
    struct btrfs_ioctl_get_subvol_rootref_args found;
    memset(&found, 0, sizeof found);
    int error = btrfs_call(fd, BTRFS_IOC_GET_SUBVOL_ROOTREF, &found);
    return error == -EOVERFLOW ? 1 : error < 0 ? error : found.num_items > 0;
}

/* Whether a subvolume is a copy of another, neither was written since, and neither holds others. */
static int btrfs_is_untouched(int copy, int source)
{
    static const __u8 none[BTRFS_UUID_SIZE];
    struct btrfs_ioctl_get_subvol_info_args new, old;
    int error = btrfs_call(copy, BTRFS_IOC_GET_SUBVOL_INFO, &new);
    if (error >= 0)
        error = btrfs_call(source, BTRFS_IOC_GET_SUBVOL_INFO, &old);
    if (error < 0)
        return error;
    if (!memcmp(old.uuid, none, sizeof none) || memcmp(new.parent_uuid, old.uuid, sizeof none) ||
        new.ctransid >= new.otransid || old.ctransid >= new.otransid)
        return 0;
    int nested = has_nested(copy);
    if (!nested)
        nested = has_nested(source);
    return nested < 0 ? nested : !nested;
}

/* With a zero count the kernel neither queues nor waits; sizes here are those of the fixed part. */
static size_t search_args_size(void) { return sizeof(struct btrfs_ioctl_search_args_v2); }
static size_t search_header_size(void) { return sizeof(struct btrfs_ioctl_search_header); }
"""

DECLARATIONS = r"""
#define HAVE_SEND_VERSION ...
#define HAVE_SNAP_DESTROY_V2 ...
#define HAVE_SIMPLE_QUOTA ...
#define HAVE_SUBVOL_SYNC_WAIT ...

#define BTRFS_SUPER_MAGIC ...
#define BTRFS_FIRST_FREE_OBJECTID ...
#define BTRFS_LAST_FREE_OBJECTID ...
#define BTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET ...
#define BTRFS_SUBVOL_NAME_MAX ...
#define BTRFS_FSID_SIZE ...
#define BTRFS_UUID_SIZE ...

#define BTRFS_SUBVOL_RDONLY ...
#define BTRFS_ROOT_SUBVOL_RDONLY ...
#define BTRFS_SUBVOL_SPEC_BY_ID ...

#define BTRFS_IOC_SUBVOL_CREATE_V2 ...
#define BTRFS_IOC_SNAP_CREATE_V2 ...
#define BTRFS_IOC_SNAP_DESTROY ...
#define BTRFS_IOC_SNAP_DESTROY_V2 ...
#define BTRFS_IOC_SUBVOL_GETFLAGS ...
#define BTRFS_IOC_SUBVOL_SETFLAGS ...
#define BTRFS_IOC_GET_SUBVOL_INFO ...
#define BTRFS_IOC_GET_SUBVOL_ROOTREF ...
#define BTRFS_IOC_INO_LOOKUP ...
#define BTRFS_IOC_INO_LOOKUP_USER ...
#define BTRFS_IOC_SYNC ...
#define BTRFS_IOC_START_SYNC ...
#define BTRFS_IOC_WAIT_SYNC ...
#define BTRFS_IOC_SUBVOL_SYNC_WAIT ...
#define BTRFS_IOC_TREE_SEARCH_V2 ...
#define BTRFS_IOC_LOGICAL_INO_V2 ...
#define BTRFS_IOC_FS_INFO ...
#define BTRFS_IOC_GET_FEATURES ...
#define BTRFS_IOC_QUOTA_CTL ...
#define BTRFS_IOC_QGROUP_CREATE ...
#define BTRFS_IOC_QUOTA_RESCAN ...
#define BTRFS_IOC_QUOTA_RESCAN_STATUS ...
#define BTRFS_IOC_QUOTA_RESCAN_WAIT ...

#define BTRFS_SUBVOL_SYNC_COUNT ...

#define BTRFS_SEND_FLAG_NO_FILE_DATA ...
#define BTRFS_SEND_FLAG_OMIT_STREAM_HEADER ...
#define BTRFS_SEND_FLAG_OMIT_END_CMD ...
#define BTRFS_SEND_FLAG_VERSION ...
#define BTRFS_SEND_FLAG_COMPRESSED ...

#define BTRFS_QUOTA_CTL_ENABLE ...
#define BTRFS_QUOTA_CTL_DISABLE ...
#define BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA ...
#define BTRFS_QGROUP_LIMIT_MAX_RFER ...
#define BTRFS_QGROUP_LIMIT_MAX_EXCL ...
#define BTRFS_QGROUP_STATUS_FLAG_ON ...
#define BTRFS_QGROUP_STATUS_FLAG_RESCAN ...
#define BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT ...
#define BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE ...

#define BTRFS_ROOT_TREE_OBJECTID ...
#define BTRFS_EXTENT_TREE_OBJECTID ...
#define BTRFS_QUOTA_TREE_OBJECTID ...
#define BTRFS_ROOT_ITEM_KEY ...
#define BTRFS_ROOT_REF_KEY ...
#define BTRFS_ROOT_BACKREF_KEY ...
#define BTRFS_EXTENT_DATA_KEY ...
#define BTRFS_EXTENT_ITEM_KEY ...
#define BTRFS_EXTENT_DATA_REF_KEY ...
#define BTRFS_SHARED_DATA_REF_KEY ...
#define BTRFS_QGROUP_STATUS_KEY ...
#define BTRFS_QGROUP_INFO_KEY ...
#define BTRFS_QGROUP_LIMIT_KEY ...
#define BTRFS_ORPHAN_ITEM_KEY ...

struct btrfs_ioctl_vol_args { int64_t fd; char name[...]; ...; };
struct btrfs_ioctl_vol_args_v2 { int64_t fd; uint64_t flags; uint64_t subvolid; char name[...]; ...; };
struct btrfs_ioctl_timespec { uint64_t sec; uint32_t nsec; ...; };
struct btrfs_ioctl_get_subvol_info_args {
    uint64_t treeid; char name[...]; uint64_t parent_id; uint64_t dirid; uint64_t generation; uint64_t flags;
    uint8_t uuid[...]; uint8_t parent_uuid[...]; uint8_t received_uuid[...];
    uint64_t ctransid; uint64_t otransid;
    struct btrfs_ioctl_timespec ctime; struct btrfs_ioctl_timespec otime; ...;
};
struct btrfs_ioctl_get_subvol_rootref_args { uint64_t min_treeid; uint8_t num_items; ...; };
struct btrfs_ioctl_ino_lookup_args { uint64_t treeid; uint64_t objectid; char name[...]; ...; };
struct btrfs_ioctl_ino_lookup_user_args {
    uint64_t dirid; uint64_t treeid; char name[...]; char path[...]; ...;
};
struct btrfs_ioctl_search_key {
    uint64_t tree_id; uint64_t min_objectid; uint64_t max_objectid; uint64_t min_offset; uint64_t max_offset;
    uint64_t min_transid; uint64_t max_transid; uint32_t min_type; uint32_t max_type; uint32_t nr_items; ...;
};
struct btrfs_ioctl_search_header {
    uint64_t transid; uint64_t objectid; uint64_t offset; uint32_t type; uint32_t len; ...;
};
struct btrfs_ioctl_search_args_v2 { struct btrfs_ioctl_search_key key; uint64_t buf_size; ...; };
struct btrfs_ioctl_fs_info_args {
    uint64_t max_id; uint64_t num_devices; uint8_t fsid[...]; uint32_t nodesize; uint32_t sectorsize;
    uint64_t flags; uint64_t generation; ...;
};
struct btrfs_ioctl_logical_ino_args {
    uint64_t logical; uint64_t size; uint64_t flags; uint64_t inodes; ...;
};
struct btrfs_ioctl_quota_ctl_args { uint64_t cmd; uint64_t status; };
struct btrfs_ioctl_qgroup_create_args { uint64_t create; uint64_t qgroupid; };
struct btrfs_ioctl_quota_rescan_args { uint64_t flags; uint64_t progress; ...; };
struct btrfs_ioctl_subvol_wait { uint64_t subvolid; uint32_t mode; uint32_t count; };

static int btrfs_call(int fd, unsigned long request, void *argument);
static int btrfs_is_untouched(int copy, int source);
static int btrfs_send(int fd, int write_fd, uint64_t parent, uint64_t *clones, uint64_t clone_count,
                      uint64_t flags, uint32_t version);
static int btrfs_limit(int fd, uint64_t qgroupid, uint64_t flags, uint64_t max_rfer, uint64_t max_excl);
static size_t search_args_size(void);
static size_t search_header_size(void);
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source("drivers._btrfs", SOURCE, extra_compile_args=["-O2"])


def build_in_place() -> None:
    """Compile the kernel interface modules, this one and ``_linux``, next to their sources."""
    for script in ("_btrfs_build.py", "_linux_build.py"):
        builder = runpy.run_path(str(HERE / script), run_name="build")["ffibuilder"]
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(builder.compile(tmpdir=scratch))
            shutil.move(built, HERE / built.name)


if __name__ == "__main__":
    build_in_place()
