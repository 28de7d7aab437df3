/* Requests that make, move and take away names. */
#include "plane.h"

#include <stdio.h>
#include <sys/sysmacros.h>

#ifndef RENAME_WHITEOUT
#define RENAME_WHITEOUT (1 << 2)
#endif

/* A parent directory in hand. */
struct place {
    struct node *parent;
    struct fdref ref;
};

static int place_take(struct request *r, struct place *place) {
    place->parent = node_find(r->plane, r->in->nodeid);
    place->ref = (struct fdref){.fd = -1, .slot = -2};
    return place->parent ? 0 : -ESTALE;
}

static void place_drop(struct request *r, struct place *place) {
    fd_release(r->plane, &place->ref);
    node_put(r->plane, place->parent);
}

/* What comes before something is made: the gate, the parent's descriptor, and whom it will belong to. */
static int begin(struct request *r, struct place *place, const char *name, uint32_t mask) {
    int result = place_take(r, place);
    if (!result)
        result = name ? gate(r, place->parent, name, NULL) : -EINVAL;
    if (!result)
        result = fd_of(r->plane, place->parent, &place->ref);
    if (result >= 0)
        result = creds_act(r->worker, r->in->uid, r->in->gid, mask);
    return result;
}

/* The answer to a request that made `name`. */
static int made(struct request *r, struct place *place, const char *name) {
    struct child child;
    r->done = true;
    int result = child_of(r, place->parent, place->ref.fd, name, &child);
    return result ? result : reply_entry(r, &child);
}

static int finish(struct request *r, struct place *place, int result) {
    place_drop(r, place);
    return result;
}

static int check(int returned) {
    return returned < 0 ? -errno : 0;
}

int do_symlink(struct request *r) {
    struct place place;
    const char *name = take_name(r, 0);
    const char *target = name ? take_text(r, strlen(name) + 1) : NULL;
    int result = begin(r, &place, target ? name : NULL, 0);
    if (!result)
        result = check(symlinkat(target, place.ref.fd, name));
    if (!result)
        result = made(r, &place, name);
    return finish(r, &place, result);
}

static dev_t decode_device(uint32_t device) {
    return makedev((device & 0xfff00) >> 8, (device & 0xff) | ((device >> 12) & 0xfff00));
}

int do_mknod(struct request *r) {
    struct place place;
    const struct fuse_mknod_in *in = take(r, sizeof *in);
    const char *name = take_name(r, sizeof *in);
    int result = begin(r, &place, in ? name : NULL, in ? in->umask : 0);
    creds_fsetid(r->worker, true);
    if (!result)
        result = check(mknodat(place.ref.fd, name, in->mode, decode_device(in->rdev)));
    if (!result)
        result = made(r, &place, name);
    return finish(r, &place, result);
}

int do_mkdir(struct request *r) {
    struct place place;
    const struct fuse_mkdir_in *in = take(r, sizeof *in);
    const char *name = take_name(r, sizeof *in);
    int result = begin(r, &place, in ? name : NULL, in ? in->umask : 0);
    creds_fsetid(r->worker, true);
    if (!result)
        result = check(mkdirat(place.ref.fd, name, in->mode & 07777));
    if (!result)
        result = made(r, &place, name);
    return finish(r, &place, result);
}

/* Open what is about to lose a name, if the kernel knows it; -1 otherwise, PARK when nothing may be done yet. */
static int open_victim(struct request *r, struct node *parent, int directory, const char *name,
                       struct node **node) {
    struct child child;
    *node = NULL;
    int result = child_of(r, parent, directory, name, &child);
    if (result)
        return result == PARK ? PARK : -1;
    *node = child.node;
    bool file = S_ISREG(child.info.stx_mode) && parent->tree->kind != BY_NAME; /* open ones stay reachable */
    if (file || !child.node->lookups || child.node->pin >= 0 ||
        (!S_ISDIR(child.info.stx_mode) && child.info.stx_nlink > 1))
        return -1;
    return open_beneath(parent->tree->export, directory, name);
}

/* Keep it reachable if its last name is gone. */
static void victim_done(struct request *r, struct node *node, int fd, bool removed) {
    struct statx info;
    if (fd >= 0) {
        if (removed && !stat_fd(fd, &info) && (!info.stx_nlink || S_ISDIR(info.stx_mode)))
            node_pin(r->plane, node, fd);
        close(fd);
    }
    if (node)
        node_put(r->plane, node);
}

static int remove_name(struct request *r, int flags) {
    struct place place;
    struct node *victim = NULL;
    const char *name = take_name(r, 0);
    int result = place_take(r, &place);
    if (!result)
        result = name ? refuse_removal(r, place.parent, name) : -EINVAL;
    if (!result)
        result = gate(r, place.parent, name, NULL);
    if (!result)
        result = fd_of(r->plane, place.parent, &place.ref);
    if (result >= 0) {
        int fd = open_victim(r, place.parent, place.ref.fd, name, &victim);
        result = fd == PARK ? PARK : check(unlinkat(place.ref.fd, name, flags));
        victim_done(r, victim, fd, !result);
    }
    return finish(r, &place, result);
}

int do_unlink(struct request *r) {
    return remove_name(r, 0);
}

int do_rmdir(struct request *r) {
    return remove_name(r, AT_REMOVEDIR);
}

static void renamed(struct request *r, struct node *parent, int directory, const char *name) {
    struct child child;
    if (parent->tree->kind != BY_NAME && !(parent->tree->export->flags & FSD_GATED))
        return;
    if (child_of(r, parent, directory, name, &child))
        return;
    node_rename(r->plane, child.node, parent, name);
    child_drop(r, &child);
}

static int move(struct request *r, struct place *from, const char *old, struct place *to, const char *new,
                uint32_t flags) {
    struct node *victim = NULL;
    int fd = flags & RENAME_EXCHANGE ? -1 : open_victim(r, to->parent, to->ref.fd, new, &victim);
    int result = fd == PARK ? PARK : check(renameat2(from->ref.fd, old, to->ref.fd, new, flags));
    victim_done(r, victim, fd, !result);
    r->done = !result;
    if (!result)
        renamed(r, to->parent, to->ref.fd, new);
    if (!result && flags & RENAME_EXCHANGE)
        renamed(r, from->parent, from->ref.fd, old);
    return result;
}

static int rename_to(struct request *r, uint64_t target, const char *old, uint32_t flags) {
    struct place from, to = {.ref = {.fd = -1, .slot = -2}};
    const char *new = old ? next_name(r, old) : NULL;
    int result = place_take(r, &from);
    if (!result && (!(to.parent = node_find(r->plane, target)) || !new))
        result = new ? -ESTALE : -EINVAL;
    if (!result && to.parent->tree->export != from.parent->tree->export)
        result = -EXDEV;
    if (!result)
        result = refuse_removal(r, from.parent, old);
    if (!result)
        result = gate(r, from.parent, old, new);
    if (!result)
        result = fd_of(r->plane, from.parent, &from.ref);
    if (result >= 0)
        result = fd_of(r->plane, to.parent, &to.ref);
    if (result >= 0)
        result = move(r, &from, old, &to, new, flags);
    place_drop(r, &to);
    return finish(r, &from, result);
}

int do_rename(struct request *r) {
    const struct fuse_rename_in *in = take(r, sizeof *in);
    return in ? rename_to(r, in->newdir, take_name(r, sizeof *in), 0) : -EINVAL;
}

int do_rename2(struct request *r) {
    const struct fuse_rename2_in *in = take(r, sizeof *in);
    return in ? rename_to(r, in->newdir, take_name(r, sizeof *in), in->flags) : -EINVAL;
}

/* linkat(2) of an open object; where its rules on descriptors refuse, through /proc. */
static int link_fd(int fd, int directory, const char *name) {
    char path[32];
    if (!linkat(fd, "", directory, name, AT_EMPTY_PATH))
        return 0;
    if (errno != ENOENT)
        return -errno;
    magic_path(fd, path);
    return check(linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW));
}

int do_link(struct request *r) {
    struct place place;
    struct fdref ref;
    const struct fuse_link_in *in = take(r, sizeof *in);
    const char *name = take_name(r, sizeof *in);
    int result = place_take(r, &place);
    struct node *node = in ? node_find(r->plane, in->oldnodeid) : NULL;
    if (!result && !node)
        result = in ? -ESTALE : -EINVAL;
    if (!result && node->tree->export != place.parent->tree->export)
        result = -EXDEV;
    if (!result)
        result = name ? gate(r, place.parent, name, NULL) : -EINVAL;
    if (!result)
        result = fd_of(r->plane, place.parent, &place.ref);
    if (result >= 0 && (result = fd_of(r->plane, node, &ref)) >= 0) {
        result = link_fd(ref.fd, place.ref.fd, name);
        fd_release(r->plane, &ref);
        if (!result)
            result = made(r, &place, name);
    }
    if (node)
        node_put(r->plane, node);
    return finish(r, &place, result);
}

/* Open or make a file, and tell the kernel of both the name and the file. */
static int create(struct request *r, struct place *place, const char *name, const struct fuse_create_in *in,
                  int fd) {
    struct fuse_entry_out *entry = (struct fuse_entry_out *)r->out;
    struct plane_open_out *out = (struct plane_open_out *)(entry + 1);
    struct child child;
    int result = enter_fd(r, place->parent, name, fd, &child);
    if (result) {
        close(fd);
        return result;
    }
    put_entry(r->plane, r->changes, child.node, &child.info, entry);
    node_count(r->plane, child.node);
    result = file_opened(r, child.node, fd, in->flags, &child.info, out);
    if (result < 0)
        node_forget(r->plane, child.node->id, 1);
    child_drop(r, &child);
    return result < 0 ? result : (int)(sizeof *entry + sizeof *out);
}

/* What of an open's flags goes to the real file. */
static int real_flags(uint32_t flags) {
    return (int)(flags & (O_ACCMODE | O_SYNC | O_DSYNC)) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
}

/* Always exclusive: for a file that appeared meanwhile the kernel has to check permissions first. */
int do_create(struct request *r) {
    struct place place;
    const struct fuse_create_in *in = take(r, sizeof *in);
    const char *name = take_name(r, sizeof *in);
    int result = begin(r, &place, in ? name : NULL, in ? in->umask : 0);
    creds_fsetid(r->worker, true);
    if (!result) {
        int fd = openat(place.ref.fd, name, real_flags(in->flags) | O_CREAT | O_EXCL, in->mode & 07777);
        if (fd < 0)
            result = errno == EEXIST && !(in->flags & O_EXCL) ? -ESTALE : -errno;
        else
            result = create(r, &place, name, in, fd);
    }
    return finish(r, &place, result);
}

int do_tmpfile(struct request *r) {
    struct place place;
    const struct fuse_create_in *in = take(r, sizeof *in);
    const char *name = take_text(r, sizeof *in);
    int result = begin(r, &place, in ? name : NULL, in ? in->umask : 0);
    creds_fsetid(r->worker, true);
    if (!result) {
        int flags = (real_flags(in->flags) & ~O_NOFOLLOW) | O_TMPFILE | (int)(in->flags & O_EXCL);
        int fd = openat(place.ref.fd, ".", flags, in->mode & 07777);
        result = fd < 0 ? -errno : create(r, &place, name, in, fd);
    }
    return finish(r, &place, result);
}
