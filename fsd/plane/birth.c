/* FUSE_STATX, which the kernel sends when a program asks statx(2) for the time of birth. ENOSYS to one of them
   ends it for the whole mount, so those about Python's nodes are answered too: from a GETATTR, without a birth. */
#include "plane.h"

static struct plane_statx_time time_of(uint64_t seconds, uint32_t rest) {
    return (struct plane_statx_time){.seconds = (int64_t)seconds, .rest = rest};
}

/* Everything but the birth is what GETATTR answers. */
static void put_statx(const struct fuse_attr_out *from, struct plane_statx_out *out) {
    const struct fuse_attr *attr = &from->attr;
    *out = (struct plane_statx_out){.attr_valid = from->attr_valid,
                                    .attr_valid_nsec = from->attr_valid_nsec,
                                    .mask = STATX_BASIC_STATS,
                                    .blksize = attr->blksize,
                                    .nlink = attr->nlink,
                                    .uid = attr->uid,
                                    .gid = attr->gid,
                                    .mode = (uint16_t)attr->mode,
                                    .ino = attr->ino,
                                    .size = attr->size,
                                    .blocks = attr->blocks,
                                    .atime = time_of(attr->atime, attr->atimensec),
                                    .ctime = time_of(attr->ctime, attr->ctimensec),
                                    .mtime = time_of(attr->mtime, attr->mtimensec),
                                    .rdev_major = attr->rdev >> 8 & 0xfff,
                                    .rdev_minor = (attr->rdev & 0xff) | (attr->rdev >> 12 & 0xfff00)};
}

int do_statx(struct request *r) {
    struct statx info;
    int length = getattr(r, &info);
    struct fuse_attr_out attr;
    struct plane_statx_out *out = (struct plane_statx_out *)r->out;
    if (length < 0)
        return length;
    memcpy(&attr, r->out, sizeof attr);
    put_statx(&attr, out);
    if (info.stx_mask & STATX_BTIME) {
        out->mask |= STATX_BTIME;
        out->btime = time_of((uint64_t)info.stx_btime.tv_sec, info.stx_btime.tv_nsec);
    }
    return sizeof *out;
}

/* What is asked of Python instead; its length. */
size_t statx_asked(unsigned char *message, size_t length) {
    struct fuse_in_header *in = (struct fuse_in_header *)message;
    if (length < sizeof *in + sizeof(struct plane_statx_in))
        return length;
    in->opcode = FUSE_GETATTR;
    in->len = sizeof *in + sizeof(struct fuse_getattr_in);
    return in->len;
}

/* Make Python's answer to that one to FUSE_STATX; its length. */
size_t statx_answered(unsigned char *message, size_t length) {
    struct fuse_out_header *header = (struct fuse_out_header *)message;
    struct fuse_attr_out attr;
    if (length != sizeof *header + sizeof attr)
        return length;
    memcpy(&attr, header + 1, sizeof attr);
    put_statx(&attr, (struct plane_statx_out *)(header + 1));
    header->len = sizeof *header + sizeof(struct plane_statx_out);
    return header->len;
}
