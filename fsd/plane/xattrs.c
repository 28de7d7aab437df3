/* Extended attributes, access control lists among them. */
#include "plane.h"

#include <linux/limits.h>
#include <sys/xattr.h>

#define ACL_NAMES "system.posix_acl_"
#define ACCESS_ACL "system.posix_acl_access"
#define TRUSTED "trusted."

/* A node in hand by a path that means itself, since these calls take no O_PATH descriptor. */
struct target {
    struct node *node;
    struct fdref ref;
    char path[32];
};

static int target_take(struct request *r, struct target *target, bool changes) {
    target->ref = (struct fdref){.fd = -1, .slot = -2};
    target->node = node_find(r->plane, r->in->nodeid);
    int result = target->node ? 0 : -ESTALE;
    if (!result && changes)
        result = gate_node(r, target->node);
    if (!result)
        result = fd_of(r->plane, target->node, &target->ref);
    if (result >= 0)
        magic_path(target->ref.fd, target->path);
    return result < 0 ? result : 0;
}

static int target_drop(struct request *r, struct target *target, int result) {
    fd_release(r->plane, &target->ref);
    node_put(r->plane, target->node);
    return result;
}

bool is_acl(const char *name) {
    return !strncmp(name, ACL_NAMES, sizeof ACL_NAMES - 1);
}

/* The kernel fails every access of others when an ACL is answered with EOPNOTSUPP: there is none. */
static int no_value(const char *name) {
    return errno == EOPNOTSUPP && is_acl(name) ? -ENODATA : -errno;
}

static int reply_size(struct request *r, size_t size) {
    struct fuse_getxattr_out *out = (struct fuse_getxattr_out *)r->out;
    *out = (struct fuse_getxattr_out){.size = (uint32_t)size};
    return sizeof *out;
}

static int reply_value(struct request *r, uint32_t room, size_t size) {
    if (!room)
        return reply_size(r, size);
    return size > room ? -ERANGE : (int)size;
}

int do_getxattr(struct request *r) {
    const struct fuse_getxattr_in *in = take(r, sizeof *in);
    const char *name = in ? take_text(r, sizeof *in) : NULL;
    struct target target;
    int result = target_take(r, &target, false);
    if (!result && !name)
        result = -EINVAL;
    if (!result) {
        ssize_t size = getxattr(target.path, name, r->out, XATTR_SIZE_MAX);
        result = size < 0 ? no_value(name) : reply_value(r, in->size, (size_t)size);
    }
    return target_drop(r, &target, result);
}

/* Names of the trusted namespace are for root only (xattr(7)). */
static size_t without_trusted(char *names, size_t size) {
    size_t kept = 0;
    for (size_t at = 0, length; at < size; at += length) {
        length = strlen(names + at) + 1;
        if (!strncmp(names + at, TRUSTED, sizeof TRUSTED - 1))
            continue;
        memmove(names + kept, names + at, length);
        kept += length;
    }
    return kept;
}

int do_listxattr(struct request *r) {
    const struct fuse_getxattr_in *in = take(r, sizeof *in);
    struct target target;
    int result = target_take(r, &target, false);
    if (!result && !in)
        result = -EINVAL;
    if (!result) {
        ssize_t size = listxattr(target.path, (char *)r->out, XATTR_LIST_MAX);
        result = size < 0 ? -errno : 0;
        if (size > 0 && r->in->uid != 0)
            size = (ssize_t)without_trusted((char *)r->out, (size_t)size);
        if (!result)
            result = reply_value(r, in->size, (size_t)size);
    }
    return target_drop(r, &target, result);
}

/* What chmod(2) does and a new ACL must do too: set-group-ID is for members of the group only. */
static void drop_group_privilege(struct target *target) {
    struct statx info;
    if (!stat_fd(target->ref.fd, &info) && info.stx_mode & S_ISGID)
        chmod(target->path, info.stx_mode & 07777 & ~(mode_t)S_ISGID);
}

int do_setxattr(struct request *r) {
    const struct fuse_setxattr_in *in = take(r, sizeof *in);
    const char *name = in ? take_text(r, sizeof *in) : NULL;
    size_t head = name ? sizeof *in + strlen(name) + 1 : 0;
    struct target target;
    int result = target_take(r, &target, true);
    if (!result && (!name || in->size > r->length - head))
        result = -EINVAL;
    if (!result) {
        creds_fsetid(r->worker, true);
        result = setxattr(target.path, name, r->arg + head, in->size, (int)in->flags) ? -errno : 0;
    }
    if (!result && in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID && !strcmp(name, ACCESS_ACL))
        drop_group_privilege(&target);
    return target_drop(r, &target, result);
}

int do_removexattr(struct request *r) {
    const char *name = take_text(r, 0);
    struct target target;
    int result = target_take(r, &target, true);
    if (!result && !name)
        result = -EINVAL;
    if (!result)
        result = removexattr(target.path, name) ? -errno : 0;
    return target_drop(r, &target, result);
}
