/* What is answered here for Python's nodes, because everybody asks and the answer is always the same. */
#include "plane.h"

/* Attributes that tools and the kernel probe for on every entry: there are none. EOPNOTSUPP lets ls stop
   asking. */
static int getxattr(struct request *r) {
    size_t head = sizeof(struct fuse_getxattr_in);
    const char *name = take_text(r, head);
    if (!name || !strcmp(name, "user.fsd.error"))
        return FORWARD;
    return strncmp(name, "security.", 9) ? -ENODATA : -EOPNOTSUPP;
}

/* The kernel asks until the answer is empty. */
static int readdir_end(struct request *r) {
    const struct fuse_read_in *in = take(r, sizeof *in);
    return in && in->offset & LISTING_END ? 0 : FORWARD;
}

int synthetic(struct request *r) {
    switch (r->in->opcode) {
    case FUSE_GETXATTR:
        return getxattr(r);
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return readdir_end(r);
    default:
        return FORWARD;
    }
}

/* Python marks the handles of directories whose listing the kernel may keep. */
void synthetic_opened(struct fuse_open_out *out) {
    if (out->fh & KEEPS_LISTING)
        out->open_flags |= FOPEN_CACHE_DIR;
    if (out->fh & KEPT_LISTING)
        out->open_flags |= FOPEN_KEEP_CACHE;
}
