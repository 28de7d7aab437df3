/* Taking requests apart and putting answers together. Nothing the other side sent is trusted. */
#include "plane.h"

#include <time.h>

#define MAPPED_MAX 600 /* seconds that attributes of a file are kept at most */

static void put_time(const struct statx_timestamp *stamp, uint64_t *seconds, uint32_t *rest) {
    *seconds = (uint64_t)stamp->tv_sec;
    *rest = stamp->tv_nsec;
}

void put_attr(struct fuse_attr *attr, uint64_t id, const struct statx *info) {
    attr->ino = id;
    attr->size = info->stx_size;
    attr->blocks = info->stx_blocks;
    put_time(&info->stx_atime, &attr->atime, &attr->atimensec);
    put_time(&info->stx_mtime, &attr->mtime, &attr->mtimensec);
    put_time(&info->stx_ctime, &attr->ctime, &attr->ctimensec);
    attr->mode = info->stx_mode;
    attr->nlink = info->stx_nlink;
    attr->uid = info->stx_uid;
    attr->gid = info->stx_gid;
    attr->rdev = (info->stx_rdev_minor & 0xff) | info->stx_rdev_major << 8 |
                 (info->stx_rdev_minor & ~0xffu) << 12; /* new_encode_dev of the kernel */
    attr->blksize = info->stx_blksize;
    attr->flags = 0;
}

/* Whether the kernel may keep what was found out since `changes` were counted: nothing changes, or the kernel
   is told when it does. */
bool may_keep(const struct plane *p, unsigned changes, const struct node *node) {
    return node->tree->export->flags & FSD_FROZEN ||
           (tree_is_told(p, node->tree) && atomic_load(&p->changes) == changes);
}

/* Seconds since the inode last changed. */
int64_t age_of(const struct statx *info) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return now.tv_sec - info->stx_ctime.tv_sec;
}

/* Nobody is told of writes through a memory mapping before the file is closed. So attributes of a file are
   kept no longer than it has been left alone, and for a second while it is open for writing. */
static uint64_t attr_valid(const struct plane *p, unsigned changes, const struct node *node, const struct statx *info) {
    if (!may_keep(p, changes, node))
        return 1;
    if (node->tree->export->flags & FSD_FROZEN || !S_ISREG(info->stx_mode))
        return FOREVER;
    int64_t age = node->written || node->writers ? 1 : age_of(info);
    return (uint64_t)(age < 1 ? 1 : age > MAPPED_MAX ? MAPPED_MAX : age);
}

void put_entry(const struct plane *p, unsigned changes, const struct node *node, const struct statx *info,
               struct fuse_entry_out *entry) {
    entry->nodeid = node->id;
    entry->generation = node->generation;
    entry->entry_valid = may_keep(p, changes, node) ? FOREVER : 1;
    entry->attr_valid = attr_valid(p, changes, node, info);
    entry->entry_valid_nsec = entry->attr_valid_nsec = 0;
    put_attr(&entry->attr, node->id, info);
}

/* Answer with an entry: counts the lookup and lets go of the child. */
int reply_entry(struct request *r, struct child *child) {
    put_entry(r->plane, r->changes, child->node, &child->info, (struct fuse_entry_out *)r->out);
    node_count(r->plane, child->node);
    child_drop(r, child);
    return sizeof(struct fuse_entry_out);
}

int reply_attr(struct request *r, const struct node *node, const struct statx *info) {
    struct fuse_attr_out *out = (struct fuse_attr_out *)r->out;
    out->attr_valid = attr_valid(r->plane, r->changes, node, info);
    out->attr_valid_nsec = out->dummy = 0;
    put_attr(&out->attr, node->id, info);
    return sizeof *out;
}

/* Give the kernel an answer or a notice; 0 or a negated errno. ENOENT: it does not know the request, because that
   was interrupted, or the node or name. */
int device_write(struct plane *p, const void *message, size_t length) {
    ssize_t sent;
    while ((sent = write(p->device, message, length)) < 0 && errno == EINTR)
        ;
    return sent < 0 ? -errno : 0;
}

/* Send the answer built at `buffer`; `result` is its payload's length or a negated errno. */
void reply_send(struct plane *p, uint64_t unique, unsigned char *buffer, int result) {
    struct fuse_out_header *header = (struct fuse_out_header *)buffer;
    header->unique = unique;
    header->error = result < 0 ? result : 0;
    header->len = (uint32_t)sizeof *header + (result > 0 ? (uint32_t)result : 0);
    device_write(p, buffer, header->len);
}

void reply_error(struct plane *p, uint64_t unique, int error) {
    unsigned char buffer[sizeof(struct fuse_out_header)] __attribute__((aligned(8)));
    reply_send(p, unique, buffer, error);
}

const void *take(struct request *r, size_t size) {
    return r->length >= size ? r->arg : NULL;
}

/* NUL-terminated text at an offset of the arguments; NULL when it does not end there. */
const char *take_text(struct request *r, size_t offset) {
    if (offset >= r->length || !memchr(r->arg + offset, 0, r->length - offset))
        return NULL;
    return (const char *)r->arg + offset;
}

static bool is_component(const char *name) {
    return name[0] && strcmp(name, ".") && strcmp(name, "..") && !strchr(name, '/');
}

/* The same for one component of a path, which is not "." or "..". */
const char *take_name(struct request *r, size_t offset) {
    const char *name = take_text(r, offset);
    return name && is_component(name) ? name : NULL;
}

const char *next_name(struct request *r, const char *name) {
    return take_name(r, (size_t)(name - (const char *)r->arg) + strlen(name) + 1);
}
