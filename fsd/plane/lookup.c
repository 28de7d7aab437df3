/* From a name in a directory to a node: one statx(2) on btrfs, an O_PATH descriptor elsewhere. */
#include "plane.h"

#define WANTED (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)
#define FLAGS (AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT)
#define FIRST_BTRFS_INODE 256 /* lower ones stand for subvolumes a snapshot left out */

uint64_t device_of(const struct statx *info) {
    return (uint64_t)info->stx_dev_major << 32 | info->stx_dev_minor;
}

int stat_fd(int fd, struct statx *info) {
    return statx(fd, "", FLAGS | AT_EMPTY_PATH, WANTED, info) ? -errno : 0;
}

/* The stand-ins for left-out subvolumes all have inode number 2; the place tells them apart. */
static uint64_t stand_in(const struct node *parent, const char *name) {
    uint64_t digest = parent->id * 0x9E3779B97F4A7C15ULL;
    for (; *name; name++)
        digest = (digest ^ (unsigned char)*name) * 1099511628211ULL;
    return (digest & (INODE_MASK >> 1)) | STAND_IN;
}

/* The node of an entry whose attributes are known. */
int enter(struct request *r, struct tree *tree, const struct handle *handle, struct node *parent, const char *name,
          struct child *child) {
    uint64_t inode = child->info.stx_ino;
    if (tree->kind == BY_BTRFS_HANDLE) {
        handle = NULL;
        if (inode < FIRST_BTRFS_INODE && parent)
            inode = stand_in(parent, name);
    }
    if (inode > INODE_MASK)
        return -EOVERFLOW;
    child->node = node_enter(r->plane, tree, inode, handle, parent, name, S_ISDIR(child->info.stx_mode));
    return child->node ? 0 : -ENOMEM;
}

/* Only directories begin another tree: overlayfs shows files under the device they come from. */
static bool is_nested(const struct tree *tree, const struct statx *info) {
    uint64_t device = device_of(info);
    return S_ISDIR(info->stx_mode) && device != tree->device && device != tree->other_device &&
           info->stx_ino >= FIRST_BTRFS_INODE;
}

/* The tree whose root was met inside another: a nested subvolume. */
static int nested(struct request *r, struct export *ex, const struct handle *root, const struct statx *info,
                  struct tree **tree) {
    struct plane *p = r->plane;
    pthread_rwlock_wrlock(&p->exports_lock);
    *tree = tree_of(ex, root);
    if (*tree && (*tree)->device != device_of(info)) {
        tree_unwatch(p, *tree);
        tree_describe(*tree, root, info);
        tree_watch(p, *tree);
    }
    pthread_rwlock_unlock(&p->exports_lock);
    return *tree ? 0 : park_for_number(r, ex, root);
}

/* The inode number is enough, and no mount can be met on the way. */
static bool needs_no_handle(const struct tree *tree) {
    return tree->kind == BY_BTRFS_HANDLE && tree->export->cloned;
}

/* The node of an open entry of `parent`; the descriptor stays the caller's. */
int enter_fd(struct request *r, struct node *parent, const char *name, int fd, struct child *child) {
    struct handle handle;
    struct tree *tree = parent->tree;
    int error = stat_fd(fd, &child->info);
    if (error)
        return error;
    if (needs_no_handle(tree) && !is_nested(tree, &child->info))
        return enter(r, tree, NULL, parent, name, child);
    if (handle_of(fd, "", AT_EMPTY_PATH, &handle))
        handle_from(&child->info, &handle);
    if (is_nested(tree, &child->info))
        error = nested(r, tree->export, &handle, &child->info, &tree);
    return error ? error : enter(r, tree, &handle, parent, name, child);
}

/* The node behind `name`, held, and its attributes; counts no lookup. */
int child_of(struct request *r, struct node *parent, int directory, const char *name, struct child *child) {
    struct tree *tree = parent->tree;
    if (needs_no_handle(tree)) {
        if (statx(directory, name, FLAGS, WANTED, &child->info))
            return -errno;
        if (!is_nested(tree, &child->info))
            return enter(r, tree, NULL, parent, name, child);
    }
    int fd = open_beneath(tree->export, directory, name);
    if (fd < 0)
        return fd;
    int error = enter_fd(r, parent, name, fd, child);
    close(fd);
    return error;
}

void child_drop(struct request *r, struct child *child) {
    node_put(r->plane, child->node);
    child->node = NULL;
}

/* Node id of an entry of a directory, 0 when there is none; counts no lookup, so it may not be known for long. */
uint64_t fsd_child(struct plane *p, uint64_t parent, const char *name) {
    struct request r = {.plane = p, .done = true};
    struct node *node = node_find(p, parent);
    struct child child = {0};
    struct fdref ref;
    uint64_t id = 0;
    if (!node)
        return 0;
    if (fd_of(p, node, &ref) >= 0) {
        if (!child_of(&r, node, ref.fd, name, &child)) {
            id = child.node->id;
            child_drop(&r, &child);
        }
        fd_release(p, &ref);
    }
    node_put(p, node);
    return id;
}

static int negative(struct request *r) {
    struct fuse_entry_out *entry = (struct fuse_entry_out *)r->out;
    memset(entry, 0, sizeof *entry);
    entry->entry_valid = FOREVER;
    return sizeof *entry;
}

int do_lookup(struct request *r) {
    struct node *parent = node_find(r->plane, r->in->nodeid);
    const char *name = take_name(r, 0);
    struct child child;
    struct fdref ref;
    if (!parent)
        return -ESTALE;
    int result = name ? fd_of(r->plane, parent, &ref) : -EINVAL;
    if (result >= 0) {
        result = child_of(r, parent, ref.fd, name, &child);
        fd_release(r->plane, &ref);
        if (!result)
            result = reply_entry(r, &child);
        else if (result == -ENOENT && may_keep(r->plane, r->changes, parent))
            result = negative(r);
    }
    node_put(r->plane, parent);
    return result;
}

int do_readlink(struct request *r) {
    struct node *node = node_find(r->plane, r->in->nodeid);
    struct fdref ref;
    if (!node)
        return -ESTALE;
    int result = fd_of(r->plane, node, &ref);
    if (result >= 0) {
        result = (int)readlinkat(ref.fd, "", (char *)r->out, PATH_MAX_TEXT);
        result = result < 0 ? -errno : result;
        fd_release(r->plane, &ref);
    }
    node_put(r->plane, node);
    return result;
}
