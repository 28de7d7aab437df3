/* A view that goes over to another subvolume under the same nodes: the first write to an image opens its
   draft. A snapshot has the inode numbers of its source, so that naming the other subvolume in the handles
   is all it takes for every node the kernel holds. */
#include "plane.h"

/* Let an open file read on in the new subvolume: what it read from the old one would otherwise get into the
   page cache that all of the inode's files share. */
static void reopen_file(struct plane *p, struct file *file) {
    int fd = node_open(p, file->node, O_RDONLY | O_NONBLOCK);
    if (fd >= 0) {
        dup3(fd, file->fd, O_CLOEXEC);
        close(fd);
    }
}

static struct file *file_of_export(struct plane *p, uint32_t at, const struct export *ex) {
    struct file *file = p->files[at];
    if (!file || file->node->tree->export != ex)
        return NULL;
    atomic_fetch_add(&file->refs, 1);
    return file;
}

static void reopen_files(struct plane *p, const struct export *ex) {
    for (uint32_t at = 0;; at++) {
        pthread_mutex_lock(&p->files_lock);
        bool end = at >= p->file_count;
        struct file *file = end ? NULL : file_of_export(p, at, ex);
        pthread_mutex_unlock(&p->files_lock);
        if (file) {
            reopen_file(p, file);
            file_put(p, file);
        }
        if (end)
            return;
    }
}

/* Open what the view goes over to; `next` has a root and a mount then, and `tree` says how to reopen nodes. */
static int open_next(struct export *next, struct tree *tree, const char *path) {
    struct handle handle;
    struct statx info;
    next->mount = -1;
    next->root = export_open_root(next, path);
    if (next->root < 0)
        return next->root;
    int error = stat_fd(next->root, &info);
    if (!error)
        error = handle_of(next->root, "", AT_EMPTY_PATH, &handle);
    if (error)
        return error;
    next->mount = openat(next->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    next->mount_id = info.stx_mnt_id;
    if (next->mount < 0)
        return -errno;
    tree->export = next;
    tree_describe(tree, &handle, &info);
    return tree->kind == BY_BTRFS_HANDLE ? 0 : -EOPNOTSUPP;
}

/* Only a sealed view of one subvolume whose nodes need no handles kept can go over. */
static bool can_exchange(const struct export *ex) {
    return ex && ex->live && ex->flags & FSD_SEALED && ex->cloned && !ex->mapped && !ex->trees->next &&
           ex->trees->kind == BY_BTRFS_HANDLE;
}

/* Requests run meanwhile, so each step leaves something they can work with: both devices count as the
   view's own before a descriptor of the other can be met, descriptors change behind their numbers. */
static void go_over(struct export *ex, const struct export *next, const struct tree *to) {
    struct tree *tree = ex->trees;
    tree->other_device = to->device;
    dup3(next->root, ex->root, O_CLOEXEC);
    dup3(next->mount, ex->mount, O_CLOEXEC);
    tree->root = to->root;
    tree->subvolume = to->subvolume;
    tree_renew(tree);
    ex->mount_id = next->mount_id;
    ex->flags &= ~(uint32_t)FSD_SEALED;
    atomic_fetch_add(&ex->epoch, 1);
}

/* Show the snapshot at `path` in the place of what a sealed export shows; its mutations can pass from now
   on. EOPNOTSUPP where nodes cannot be carried over. */
int fsd_exchange(plane *p, uint32_t number, const char *path) {
    struct export next = {0};
    struct tree tree = {0};
    struct node *root = NULL;
    int error = open_next(&next, &tree, path);
    if (!error) {
        pthread_rwlock_wrlock(&p->exports_lock);
        struct export *ex = export_find(p, number);
        error = ex ? can_exchange(ex) ? 0 : -EOPNOTSUPP : -ENOENT;
        if (!error) {
            tree_unwatch(p, ex->trees);
            go_over(ex, &next, &tree);
            tree_watch(p, ex->trees);
            fd_drop_export(p, ex);
            root = ex->pinned_root;
            node_hold(root);
        }
        pthread_rwlock_unlock(&p->exports_lock);
        if (root) {
            reopen_files(p, root->tree->export);
            node_put(p, root);
        }
    }
    if (next.mount >= 0)
        close(next.mount);
    if (next.root >= 0)
        close(next.root);
    return error;
}
