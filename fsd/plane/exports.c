/* The directory trees shown in the mount: made and withdrawn by Python, found by number. */
#include "plane.h"

#include <sys/mount.h>
#include <sys/syscall.h>

#ifndef MOUNT_ATTR_NOATIME
#define MOUNT_ATTR_NOATIME 0x10
#endif
#ifndef MOUNT_ATTR_RDONLY
#define MOUNT_ATTR_RDONLY 0x1
#endif
#ifndef MOUNT_ATTR_NODEV
#define MOUNT_ATTR_NODEV 0x4
#endif
#ifndef MOUNT_ATTR_IDMAP
#define MOUNT_ATTR_IDMAP 0x100000
#endif
#define ATIME_BITS 0x70

struct mount_attributes {
    uint64_t set, clear, propagation, userns;
};

/* Reading through the private copy leaves access times alone, no device can be opened in it, and owners are mapped
   where that is wanted. Linux before 5.12 cannot. */
static int set_attributes(const struct export *ex, int mount) {
    struct mount_attributes attributes = {.set = MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODEV, .clear = ATIME_BITS};
    if (ex->flags & (FSD_READ_ONLY | FSD_SEALED))
        attributes.set |= MOUNT_ATTR_RDONLY;
    if (ex->userns > 0) {
        attributes.set |= MOUNT_ATTR_IDMAP;
        attributes.userns = (uint64_t)ex->userns;
    }
    return (int)syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &attributes, sizeof attributes);
}

/* A private copy of the directory's mount, so that nothing is mounted below it. Where that is not allowed, the
   directory itself, unless owners were to be mapped. */
int export_open_root(struct export *ex, const char *path) {
    const int clone = 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC | AT_SYMLINK_NOFOLLOW;
    int fd = ex->flags & FSD_BY_NAME ? -1 : (int)syscall(SYS_open_tree, AT_FDCWD, path, clone);
    ex->cloned = fd >= 0;
    ex->mapped = ex->cloned && !set_attributes(ex, fd) && ex->userns > 0;
    if (ex->userns > 0 && !ex->mapped) {
        if (ex->cloned)
            close(fd);
        return -EOPNOTSUPP;
    }
    if (ex->cloned)
        return fd;
    fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* What stands for a handle where a filesystem has none; it cannot be opened. */
void handle_from(const struct statx *info, struct handle *handle) {
    uint64_t device = device_of(info);
    handle->length = 16;
    handle->type = -1;
    memcpy(handle->bytes, &device, 8);
    memcpy(handle->bytes + 8, &info->stx_ino, 8);
}

static bool opens(int mount, const struct handle *handle, const struct statx *info) {
    struct statx again;
    int fd = open_handle(mount, handle, O_PATH);
    bool same = fd >= 0 && !stat_fd(fd, &again) && again.stx_ino == info->stx_ino &&
                device_of(&again) == device_of(info);
    if (fd >= 0)
        close(fd);
    return same;
}

static bool is_btrfs_handle(const struct handle *handle, const struct statx *info) {
    uint64_t inode;
    memcpy(&inode, handle->bytes, 8);
    return handle->type == BTRFS_FID && handle->length == BTRFS_FID_LENGTH && inode == info->stx_ino;
}

/* Nothing read of a tree before holds any more. */
void tree_renew(struct tree *tree) {
    static atomic_uint last;
    atomic_store(&tree->serial, atomic_fetch_add(&last, 1) + 1);
    atomic_store(&tree->settled, UNSETTLED);
}

/* Find out how nodes of a tree can be reopened, by trying it on its root. */
static enum tree_kind kind_of(const struct tree *tree, const struct handle *root, const struct statx *info) {
    struct handle any = *root;
    if (tree->export->flags & FSD_BY_NAME || root->type < 0 || !opens(tree->export->mount, root, info))
        return BY_NAME;
    if (!is_btrfs_handle(root, info))
        return BY_HANDLE;
    memset(any.bytes + 16, 0, 4); /* any generation */
    return opens(tree->export->mount, &any, info) ? BY_BTRFS_HANDLE : BY_HANDLE;
}

/* Note what a tree is. Others may be using it as it was. */
void tree_describe(struct tree *tree, const struct handle *root, const struct statx *info) {
    tree->device = tree->other_device = device_of(info);
    tree->block = info->stx_blksize;
    tree_renew(tree);
    tree->root = *root;
    if (is_btrfs_handle(root, info))
        memcpy(&tree->subvolume, root->bytes + 8, 8);
    tree->kind = kind_of(tree, root, info);
}

struct tree *tree_of(struct export *ex, const struct handle *root) {
    for (struct tree *tree = ex->trees; tree; tree = tree->next)
        if (tree->root.length == root->length && tree->root.type == root->type &&
            !memcmp(tree->root.bytes, root->bytes, root->length))
            return tree;
    return NULL;
}

static void export_free(struct plane *p, struct export *ex) {
    for (struct tree *tree = ex->trees, *next; tree; tree = next) {
        next = tree->next;
        tree_unwatch(p, tree);
        free(tree);
    }
    if (ex->mount >= 0)
        close(ex->mount);
    if (ex->root >= 0)
        close(ex->root);
    prepared_drop(ex);
    free(ex);
}

struct export *export_find(struct plane *p, uint32_t number) {
    struct export *ex = p->exports;
    while (ex && ex->number != number)
        ex = ex->next;
    return ex;
}

static void export_remove(struct plane *p, struct export *ex) {
    struct export **at = &p->exports;
    while (*at && *at != ex)
        at = &(*at)->next;
    if (*at)
        *at = ex->next;
    export_free(p, ex);
}

/* The last node of a withdrawn export takes the export with it. */
void export_node_gone(struct plane *p, struct export *ex) {
    if (atomic_fetch_sub(&ex->nodes, 1) != 1)
        return;
    pthread_rwlock_wrlock(&p->exports_lock);
    for (struct export *at = p->exports; at; at = at->next)
        if (at == ex && !ex->live && atomic_load(&ex->nodes) == 0) {
            export_remove(p, ex);
            break;
        }
    pthread_rwlock_unlock(&p->exports_lock);
}

void exports_free(struct plane *p) {
    while (p->exports)
        export_remove(p, p->exports);
}

static struct export *export_make(const char *path, uint32_t number, uint32_t flags, int userns, int *error) {
    struct export *ex = calloc(1, sizeof *ex);
    struct tree *tree = calloc(1, sizeof *tree);
    struct handle handle = {0};
    struct statx info;
    *error = -ENOMEM;
    if (ex && tree) {
        ex->number = tree->number = number;
        ex->flags = flags;
        ex->userns = userns;
        tree->export = ex;
        *error = ex->root = export_open_root(ex, path);
        if (*error >= 0)
            *error = stat_fd(ex->root, &info);
        if (*error == 0 && !S_ISDIR(info.stx_mode))
            *error = -ENOTDIR;
    }
    if (*error < 0) {
        if (ex && ex->root > 0)
            close(ex->root);
        free(ex);
        free(tree);
        return NULL;
    }
    ex->mount_id = info.stx_mnt_id;
    ex->mount = openat(ex->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle_of(ex->root, "", AT_EMPTY_PATH, &handle))
        handle_from(&info, &handle);
    tree_describe(tree, &handle, &info);
    ex->trees = tree;
    return ex;
}

static struct tree *root_tree(const struct export *ex) {
    struct tree *tree = ex->trees;
    while (tree->next)
        tree = tree->next; /* the oldest */
    return tree;
}

static int pin_root(struct plane *p, struct export *ex) {
    struct tree *tree = root_tree(ex);
    struct statx info;
    if (stat_fd(ex->root, &info))
        return -errno;
    struct node *node = node_enter(p, tree, info.stx_ino, tree->kind == BY_BTRFS_HANDLE ? NULL : &tree->root,
                                   NULL, NULL, true);
    if (!node)
        return -ENOMEM;
    node->root = true;
    ex->pinned_root = node;
    return 0;
}

static int revive(struct plane *p, struct export *ex, uint32_t flags, uint64_t owner) {
    int error = atomic_load(&ex->gone) ? -ESTALE : ex->live ? 0 : pin_root(p, ex);
    if (error)
        return error;
    bool thaws = ex->flags & ~flags & FSD_FROZEN, freezes = ~ex->flags & flags & FSD_FROZEN;
    ex->flags = flags;
    ex->owner = owner;
    ex->live = true;
    for (struct tree *tree = ex->trees; tree && (thaws || freezes); tree = tree->next)
        thaws ? tree_watch(p, tree) : tree_unwatch(p, tree);
    return 0;
}

/* Show a directory, its owners mapped by a user namespace unless that is 0; EOPNOTSUPP where they cannot be.
   Returns its node id, or a negated errno. Nothing changes if it is shown already. */
int64_t fsd_export(plane *p, const char *path, uint32_t number, uint32_t flags, uint64_t owner,
                   int userns) {
    int error = 0;
    if (!number || number >= NUMBER_MAX)
        return -EOVERFLOW;
    pthread_rwlock_wrlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    if (ex) {
        error = revive(p, ex, flags, owner);
    } else if ((ex = export_make(path, number, flags, userns, &error))) {
        ex->owner = owner;
        atomic_store(&ex->armed, (flags & FSD_GATED) != 0);
        error = pin_root(p, ex);
        ex->live = !error;
        tree_watch(p, ex->trees);
        ex->next = p->exports;
        p->exports = ex;
    }
    int64_t id = ex && !error ? (int64_t)ex->pinned_root->id : error;
    pthread_rwlock_unlock(&p->exports_lock);
    return id;
}

/* Withdraw an export. Nodes the kernel holds go on working as long as their inodes exist. */
int fsd_unexport(plane *p, uint32_t number) {
    pthread_rwlock_wrlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    struct node *root = ex && ex->live ? ex->pinned_root : NULL;
    if (root) {
        ex->live = false;
        ex->pinned_root = NULL;
        prepared_drop(ex);
        fd_drop_export(p, ex);
    }
    pthread_rwlock_unlock(&p->exports_lock);
    if (!root)
        return -ENOENT;
    notify_inval_inode(p, root->id);
    node_put(p, root);
    scan_drop(p);
    return 0;
}

/* Give a nested subvolume its number; requests that met it go on. */
int fsd_number(plane *p, uint32_t export_number, const unsigned char *handle, uint32_t length, uint32_t number) {
    struct handle root = {.length = length - 4};
    if (length < 4 || length > 4 + sizeof root.bytes || !number || number >= NUMBER_MAX)
        return -EINVAL;
    memcpy(&root.type, handle, 4);
    memcpy(root.bytes, handle + 4, root.length);
    pthread_rwlock_wrlock(&p->exports_lock);
    struct export *ex = export_find(p, export_number);
    struct tree *tree = ex && !tree_of(ex, &root) ? calloc(1, sizeof *tree) : NULL;
    if (tree) {
        tree->export = ex;
        tree->number = number;
        tree->root = root;
        tree->device = UINT64_MAX; /* described when it is entered */
        tree->next = ex->trees;
        ex->trees = tree;
    }
    pthread_rwlock_unlock(&p->exports_lock);
    return ex ? 0 : -ENOENT;
}

/* How nodes of an export's root tree are reopened (enum tree_kind); a negated errno for no export. */
int fsd_mode(plane *p, uint32_t number) {
    pthread_rwlock_rdlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    int kind = ex ? (int)root_tree(ex)->kind : -ENOENT;
    pthread_rwlock_unlock(&p->exports_lock);
    return kind;
}

/* Whether the directory was deleted: a btrfs subvolume keeps its links then, but its handle is refused. */
static bool is_deleted(const struct export *ex) {
    const struct tree *tree = root_tree(ex);
    struct statx info;
    if (stat_fd(ex->root, &info) || !info.stx_nlink)
        return true;
    int fd = tree->kind == BY_NAME ? -1 : open_handle(ex->mount, &tree->root, O_PATH);
    if (fd >= 0)
        close(fd);
    return fd == -ESTALE;
}

/* Let go of what was deleted, so that its space comes free: only open files hold it from now on. Threads
   may be using the descriptors, so the numbers stay taken until the last node is forgotten. */
static void let_go(struct plane *p, struct export *ex) {
    atomic_store(&ex->gone, true);
    dup3(p->stop_fd, ex->root, O_CLOEXEC);
    if (ex->mount >= 0)
        dup3(p->stop_fd, ex->mount, O_CLOEXEC);
    fd_drop_export(p, ex);
    nodes_unpin(p, ex);
}

/* The kernel keeps attributes for good: tell it later of every node, so that it gets to know that it is gone. */
static void forget_nodes(struct plane *p, const struct export *ex) {
    for (int shard = 0; shard < SHARDS; shard++) {
        size_t count = 0;
        uint64_t *ids = node_ids(p, shard, ex, &count);
        for (size_t i = 0; i < count; i++)
            notify_inval_inode(p, ids[i]);
        free(ids);
    }
}

/* Look for exports whose directory was deleted. Their numbers, at most `room` of them; how many. */
int fsd_sweep(plane *p, uint32_t *numbers, int room) {
    int found = 0;
    pthread_rwlock_rdlock(&p->exports_lock);
    for (struct export *ex = p->exports; ex && found < room; ex = ex->next)
        if (!atomic_load(&ex->gone) && is_deleted(ex)) {
            let_go(p, ex);
            forget_nodes(p, ex);
            numbers[found++] = ex->number;
        }
    pthread_rwlock_unlock(&p->exports_lock);
    if (found)
        notify_ask_again(p); /* it keeps names of views that never change for good */
    return found;
}
