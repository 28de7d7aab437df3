/* Attributes of nodes, and of the filesystem they are on. */
#include "plane.h"

#define CHANGES (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE)

static int check(int returned) {
    return returned < 0 ? -errno : 0;
}

static int stat_node(struct request *r, struct node *node, struct statx *info) {
    struct fdref ref;
    int result = fd_of(r->plane, node, &ref);
    if (result < 0)
        return result;
    result = stat_fd(ref.fd, info);
    fd_release(r->plane, &ref);
    return result;
}

/* Answer GETATTR, or what begins like it; `info` is what was found. */
int getattr(struct request *r, struct statx *info) {
    const struct fuse_getattr_in *in = take(r, sizeof *in);
    struct node *node = node_find(r->plane, r->in->nodeid);
    if (!node)
        return -ESTALE;
    bool by_file = in && in->getattr_flags & FUSE_GETATTR_FH && !(node->tree->export->flags & FSD_FROZEN);
    struct file *file = by_file ? file_get(r->plane, in->fh) : NULL;
    int result = file ? stat_fd(file->fd, info) : stat_node(r, node, info);
    if (file)
        file_put(r->plane, file);
    if (!result)
        result = reply_attr(r, node, info);
    node_put(r->plane, node);
    return result;
}

int do_getattr(struct request *r) {
    struct statx info;
    return getattr(r, &info);
}

static int truncate_fd(struct request *r, const struct fuse_setattr_in *in, int fd) {
    creds_fsetid(r->worker, !(in->valid & FATTR_KILL_SUIDGID));
    return check(ftruncate(fd, (off_t)in->size));
}

static int set_size(struct request *r, const struct fuse_setattr_in *in, struct node *node) {
    struct file *file = in->valid & FATTR_FH ? file_get(r->plane, in->fh) : NULL;
    int result = -EINVAL;
    if (file)
        result = truncate_fd(r, in, file->fd);
    if (file)
        file_put(r->plane, file);
    if (result != -EINVAL)
        return result;
    int fd = node_open(r->plane, node, O_WRONLY | O_NONBLOCK);
    if (fd < 0)
        return fd;
    result = truncate_fd(r, in, fd);
    close(fd);
    return result;
}

static struct timespec time_of(uint32_t valid, uint32_t wanted, uint32_t now, uint64_t seconds, uint32_t rest) {
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = rest};
    if (!(valid & wanted))
        time.tv_nsec = UTIME_OMIT;
    else if (valid & now)
        time.tv_nsec = UTIME_NOW;
    return time;
}

static int set_times(const struct fuse_setattr_in *in, int fd) {
    struct timespec times[2] = {
        time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };
    char path[32];
    if (!(in->valid & (FATTR_ATIME | FATTR_MTIME)))
        return 0;
    int result = check(utimensat(fd, "", times, AT_EMPTY_PATH));
    if (result != -EINVAL)
        return result;
    magic_path(fd, path);
    return check(utimensat(AT_FDCWD, path, times, 0));
}

static int set_mode(struct request *r, const struct fuse_setattr_in *in, int fd) {
    char path[32];
    creds_fsetid(r->worker, true);
    magic_path(fd, path);
    return check(chmod(path, in->mode & 07777));
}

/* Owner first, because chown(2) takes set-user-ID away; then mode, size and times. */
static int apply(struct request *r, const struct fuse_setattr_in *in, struct node *node, int fd) {
    uint32_t valid = in->valid;
    int result = 0;
    creds_fsetid(r->worker, true);
    if (valid & (FATTR_UID | FATTR_GID)) {
        uid_t uid = valid & FATTR_UID ? in->uid : (uid_t)-1;
        gid_t gid = valid & FATTR_GID ? in->gid : (gid_t)-1;
        result = check(fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
    }
    if (!result && valid & FATTR_MODE)
        result = set_mode(r, in, fd);
    if (!result && valid & FATTR_SIZE)
        result = set_size(r, in, node);
    return result ? result : set_times(in, fd);
}

int do_setattr(struct request *r) {
    const struct fuse_setattr_in *in = take(r, sizeof *in);
    struct node *node = node_find(r->plane, r->in->nodeid);
    struct statx info;
    struct fdref ref;
    if (!node)
        return -ESTALE;
    int result = in ? 0 : -EINVAL;
    if (!result && (in->valid & CHANGES || node->tree->export->flags & (FSD_READ_ONLY | FSD_SEALED)))
        result = gate_node(r, node);
    if (!result && (result = fd_of(r->plane, node, &ref)) >= 0) {
        result = apply(r, in, node, ref.fd);
        if (!result)
            result = stat_fd(ref.fd, &info);
        fd_release(r->plane, &ref);
        if (!result)
            result = reply_attr(r, node, &info);
    }
    node_put(r->plane, node);
    return result;
}

int do_syncfs(struct request *r) {
    struct node *node = node_find(r->plane, r->in->nodeid);
    if (!node)
        return -ESTALE;
    int fd = openat(node->tree->export->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = fd < 0 ? -errno : check(syncfs(fd));
    if (fd >= 0)
        close(fd);
    node_put(r->plane, node);
    return result;
}
