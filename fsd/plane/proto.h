/* The FUSE kernel protocol as far as the headers of the build machine do not know it yet (fuse(4),
   include/uapi/linux/fuse.h). Every definition is guarded, so newer headers win. */
#ifndef FSD_PLANE_PROTO_H
#define FSD_PLANE_PROTO_H

#include <linux/fuse.h>
#include <linux/types.h>
#include <sys/ioctl.h>

#define PLANE_MINOR 40 /* 7.40 has passthrough */

#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#endif
#ifndef FOPEN_PASSTHROUGH
#define FOPEN_PASSTHROUGH (1 << 7)
#endif
#ifndef FUSE_DEV_IOC_BACKING_OPEN
struct fuse_backing_map {
    __s32 fd;
    __u32 flags;
    __u64 padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, __u32)
#endif

#define PLANE_NOTIFY_INC_EPOCH 8 /* FUSE_NOTIFY_INC_EPOCH of 7.44 */

/* FUSE_STATX of 7.39. What is asked begins like fuse_getattr_in. */
#define PLANE_STATX 52
struct plane_statx_in {
    __u32 getattr_flags;
    __u32 reserved;
    __u64 fh;
    __u32 flags;
    __u32 mask;
};
struct plane_statx_time {
    __s64 seconds;
    __u32 rest;
    __s32 reserved;
};
struct plane_statx_out {
    __u64 attr_valid;
    __u32 attr_valid_nsec;
    __u32 flags;
    __u64 spare[2];
    __u32 mask; /* struct fuse_statx from here on */
    __u32 blksize;
    __u64 attributes;
    __u32 nlink;
    __u32 uid;
    __u32 gid;
    __u16 mode;
    __u16 spare0;
    __u64 ino;
    __u64 size;
    __u64 blocks;
    __u64 attributes_mask;
    struct plane_statx_time atime, btime, ctime, mtime;
    __u32 rdev_major;
    __u32 rdev_minor;
    __u32 dev_major;
    __u32 dev_minor;
    __u64 spare2[14];
};
_Static_assert(sizeof(struct plane_statx_out) == 288, "fuse_statx_out is 288 bytes");

/* fuse_init_out as of 7.40: max_stack_depth follows flags2. */
struct plane_init_out {
    __u32 major;
    __u32 minor;
    __u32 max_readahead;
    __u32 flags;
    __u16 max_background;
    __u16 congestion_threshold;
    __u32 max_write;
    __u32 time_gran;
    __u16 max_pages;
    __u16 map_alignment;
    __u32 flags2;
    __u32 max_stack_depth;
    __u32 unused[6];
};
_Static_assert(sizeof(struct plane_init_out) == 64, "fuse_init_out is 64 bytes");

/* fuse_open_out: what older headers call padding is the backing id. */
struct plane_open_out {
    __u64 fh;
    __u32 open_flags;
    __s32 backing_id;
};
_Static_assert(sizeof(struct plane_open_out) == sizeof(struct fuse_open_out), "fuse_open_out is 16 bytes");

#endif
