/* Descriptors of nodes: reopened by file handle, a bounded number of directories kept open. */
#include "plane.h"

#include <linux/openat2.h>
#include <stdio.h>
#include <sys/syscall.h>

#define PATH_FLAGS (O_PATH | O_NOFOLLOW | O_CLOEXEC)
#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

_Static_assert(offsetof(struct handle, bytes) == sizeof(struct file_handle), "a handle is laid out as the kernel's");

int fds_init(struct plane *p, int descriptors) {
    pthread_mutex_init(&p->slots_lock, NULL);
    p->slot_count = descriptors < 4 ? 4 : descriptors;
    p->slots = calloc((size_t)p->slot_count, sizeof *p->slots);
    if (!p->slots)
        return -ENOMEM;
    for (int i = 0; i < p->slot_count; i++) {
        p->slots[i].fd = -1;
        pthread_mutex_init(&p->slots[i].reading, NULL);
    }
    return 0;
}

void fds_free(struct plane *p) {
    for (int i = 0; p->slots && i < p->slot_count; i++) {
        if (p->slots[i].fd >= 0)
            close(p->slots[i].fd);
        pthread_mutex_destroy(&p->slots[i].reading);
    }
    free(p->slots);
    pthread_mutex_destroy(&p->slots_lock);
}

/* Path that means the object behind fd itself, for calls that take no O_PATH descriptor. */
void magic_path(int fd, char path[32]) {
    snprintf(path, 32, "/proc/self/fd/%d", fd);
}

/* The handle of an entry; on failure `handle` holds none. */
int handle_of(int directory, const char *name, int flags, struct handle *handle) {
    int mount;
    handle->length = sizeof handle->bytes;
    return name_to_handle_at(directory, name, (struct file_handle *)handle, &mount, flags) ? -errno : 0;
}

int open_handle(int mount, const struct handle *handle, int flags) {
    int fd = open_by_handle_at(mount, (struct file_handle *)handle, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

uint32_t handle_digest(const struct handle *handle) {
    uint32_t digest = 2166136261u;
    for (uint32_t i = 0; i < handle->length; i++)
        digest = (digest ^ handle->bytes[i]) * 16777619u;
    return digest;
}

/* btrfs: an inode number is not used again while the filesystem is mounted, and a handle with
   generation 0 is accepted for any, so no handle has to be asked for or kept (checked in exports.c). */
static void btrfs_handle(const struct node *node, struct handle *handle) {
    uint64_t inode = node->id & INODE_MASK;
    handle->length = BTRFS_FID_LENGTH;
    handle->type = BTRFS_FID;
    memcpy(handle->bytes, &inode, 8);
    memcpy(handle->bytes + 8, &node->tree->subvolume, 8);
    memset(handle->bytes + 16, 0, 4);
}

/* Open an entry without following links or entering mounts; O_PATH. */
int open_beneath(const struct export *ex, int directory, const char *name) {
    struct open_how how = {.flags = PATH_FLAGS, .resolve = RESOLVE_NO_MAGICLINKS};
    if (!ex->cloned)
        how.resolve |= RESOLVE_NO_XDEV;
    int fd = (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
    return fd < 0 ? -errno : fd;
}

static int reopen_magic(int path, int flags) {
    char magic[32];
    magic_path(path, magic);
    int fd = open(magic, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static bool is_node(const struct node *node, int fd) {
    struct handle handle;
    struct statx info;
    if (stat_fd(fd, &info))
        return false;
    if (handle_of(fd, "", AT_EMPTY_PATH, &handle))
        handle_from(&info, &handle);
    if (node->handle)
        return handle_digest(&handle) == node->generation;
    return !(info.stx_ino >> 8) || info.stx_ino == (node->id & INODE_MASK);
}

static int step_down(struct plane *p, struct node *child, int directory) {
    char name[LONGEST_NAME + 1];
    node_name(p, child, name);
    int fd = open_beneath(child->tree->export, directory, name);
    if (fd == -ENOENT)
        return -ESTALE;
    if (fd >= 0 && !is_node(child, fd)) {
        close(fd);
        return -ESTALE;
    }
    return fd;
}

/* A node and those above it, held, up to the first whose descriptor is at hand. */
struct chain {
    struct node **nodes;
    size_t count, room;
};

static bool chain_add(struct chain *chain, struct node *node) {
    if (chain->count == chain->room) {
        size_t room = chain->room ? chain->room * 2 : 16;
        struct node **nodes = realloc(chain->nodes, room * sizeof *nodes);
        if (!nodes)
            return false;
        chain->nodes = nodes;
        chain->room = room;
    }
    chain->nodes[chain->count++] = node;
    return true;
}

static bool take_slot(struct plane *p, struct node *node, struct fdref *ref) {
    pthread_mutex_lock(&p->slots_lock);
    bool found = node->slot >= 0;
    if (found) {
        struct slot *slot = &p->slots[node->slot];
        slot->users++;
        slot->used = true;
        *ref = (struct fdref){.fd = slot->fd, .slot = node->slot};
    }
    pthread_mutex_unlock(&p->slots_lock);
    return found;
}

/* A descriptor of an ancestor that takes no walk to get; 1 when there is none. */
static int at_hand(struct plane *p, struct node *node, struct fdref *ref) {
    if (node->pin >= 0 || node->root) {
        *ref = (struct fdref){.fd = node->root ? node->tree->export->root : node->pin, .slot = -2};
        return 0;
    }
    if (take_slot(p, node, ref))
        return 0;
    struct node *parent = node_parent(p, node);
    node_put(p, parent);
    return parent ? 1 : fd_of(p, node, ref) < 0 ? ref->fd : 0;
}

/* Collect what lies between a node and the descriptor to begin at. */
static int climb(struct plane *p, struct node *node, struct chain *chain, struct fdref *ref) {
    int result = 1;
    for (node_hold(node); result > 0;) {
        if (!chain_add(chain, node)) {
            node_put(p, node);
            return -ENOMEM;
        }
        if (!(node = node_parent(p, node)))
            return -ESTALE;
        result = at_hand(p, node, ref);
        if (result <= 0 && !chain_add(chain, node)) {
            node_put(p, node);
            fd_release(p, ref);
            return -ENOMEM;
        }
    }
    return result;
}

/* Open a node by the names above it, from the nearest open ancestor down; no recursion for deep trees. */
static int open_by_names(struct plane *p, struct node *node) {
    struct chain chain = {0};
    struct fdref ref = {.fd = -1, .slot = -2};
    int fd = climb(p, node, &chain, &ref);
    for (size_t at = chain.count - 1; fd >= 0 && at-- > 0;) {
        fd = step_down(p, chain.nodes[at], ref.fd);
        fd_release(p, &ref);
        ref = (struct fdref){.fd = fd, .slot = -1};
    }
    for (size_t at = 0; at < chain.count; at++)
        node_put(p, chain.nodes[at]);
    free(chain.nodes);
    return fd;
}

static int duplicate(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy < 0 ? -errno : copy;
}

static int open_root(struct node *node, int flags) {
    int root = node->tree->export->root;
    if (flags & O_PATH)
        return duplicate(root);
    int fd = openat(root, ".", flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int open_afresh(struct plane *p, struct node *node, int flags) {
    struct handle handle;
    if (node->by_name) {
        int path = open_by_names(p, node);
        if (path < 0 || flags & O_PATH)
            return path;
        int fd = reopen_magic(path, flags);
        close(path);
        return fd;
    }
    if (node->root || node->tree->kind == BY_NAME)
        return open_root(node, flags);
    if (node->tree->kind == BY_HANDLE && node->handle)
        return open_handle(node->tree->export->mount, node->handle, flags);
    btrfs_handle(node, &handle);
    return open_handle(node->tree->export->mount, &handle, flags);
}

/* A descriptor of a node, opened with `flags`; ESTALE when it is gone. The caller closes it. */
int node_open(struct plane *p, struct node *node, int flags) {
    if (atomic_load(&node->tree->export->gone))
        return -ESTALE;
    if (node->pin >= 0)
        return flags & O_PATH ? duplicate(node->pin) : reopen_magic(node->pin, flags);
    return open_afresh(p, node, flags);
}

static int open_directory(struct plane *p, struct node *node) {
    int fd = node_open(p, node, DIRECTORY_FLAGS);
    return fd == -EACCES ? node_open(p, node, PATH_FLAGS | O_DIRECTORY) : fd;
}

/* A slot nobody uses, least recently used as far as one bit tells; -1 when all are in use. */
static int free_slot(struct plane *p) {
    for (int tries = 0; tries < 2 * p->slot_count; tries++) {
        int at = p->slot_hand;
        p->slot_hand = (p->slot_hand + 1) % p->slot_count;
        struct slot *slot = &p->slots[at];
        if (slot->users)
            continue;
        if (slot->fd >= 0 && slot->used) {
            slot->used = false;
            continue;
        }
        return at;
    }
    return -1;
}

/* Keep a directory's new descriptor, unless the export shows something else by now; it is the caller's to use
   until fd_release. */
static void keep(struct plane *p, struct node *node, struct fdref *ref, unsigned epoch) {
    int evicted = -1;
    pthread_mutex_lock(&p->slots_lock);
    bool stays = node->slot < 0 && atomic_load(&node->tree->export->epoch) == epoch;
    int at = stays ? free_slot(p) : -1;
    if (at >= 0) {
        struct slot *slot = &p->slots[at];
        evicted = slot->fd;
        if (slot->node)
            slot->node->slot = -1;
        slot->fd = ref->fd;
        slot->node = node;
        slot->users = 1;
        slot->used = true;
        node->slot = ref->slot = at;
    }
    pthread_mutex_unlock(&p->slots_lock);
    if (evicted >= 0)
        close(evicted);
}

/* A descriptor to make calls relative to. That of a directory can be listed; others are O_PATH. */
int fd_of(struct plane *p, struct node *node, struct fdref *ref) {
    *ref = (struct fdref){.fd = -ESTALE, .slot = -2};
    if (atomic_load(&node->tree->export->gone))
        return -ESTALE;
    if (node->directory && take_slot(p, node, ref))
        return ref->fd;
    if (!node->directory && node->pin >= 0) {
        *ref = (struct fdref){.fd = node->pin, .slot = -2};
        return ref->fd;
    }
    unsigned epoch = atomic_load(&node->tree->export->epoch);
    int fd = node->directory ? open_directory(p, node) : node_open(p, node, PATH_FLAGS);
    *ref = (struct fdref){.fd = fd, .slot = -1};
    if (fd >= 0 && node->directory)
        keep(p, node, ref, epoch);
    return fd;
}

void fd_release(struct plane *p, struct fdref *ref) {
    if (ref->slot >= 0) {
        pthread_mutex_lock(&p->slots_lock);
        struct slot *slot = &p->slots[ref->slot];
        int orphan = --slot->users == 0 && !slot->node ? slot->fd : -1;
        if (orphan >= 0)
            slot->fd = -1;
        pthread_mutex_unlock(&p->slots_lock);
        if (orphan >= 0)
            close(orphan);
    } else if (ref->slot == -1 && ref->fd >= 0) {
        close(ref->fd);
    }
    ref->slot = -2;
}

static int drop_locked(struct plane *p, struct node *node) {
    if (node->slot < 0)
        return -1;
    struct slot *slot = &p->slots[node->slot];
    int fd = slot->users ? -1 : slot->fd; /* else the last user closes it */
    if (!slot->users)
        slot->fd = -1;
    slot->node = NULL;
    node->slot = -1;
    return fd;
}

/* Close what is kept of a node. */
void fd_drop(struct plane *p, struct node *node) {
    pthread_mutex_lock(&p->slots_lock);
    int fd = drop_locked(p, node);
    pthread_mutex_unlock(&p->slots_lock);
    if (fd >= 0)
        close(fd);
}

/* Close what is kept of an export, so that it can be unmounted or deleted. */
void fd_drop_export(struct plane *p, const struct export *ex) {
    for (int i = 0; i < p->slot_count; i++) {
        pthread_mutex_lock(&p->slots_lock);
        struct node *node = p->slots[i].node;
        int fd = node && node->tree->export == ex ? drop_locked(p, node) : -1;
        pthread_mutex_unlock(&p->slots_lock);
        if (fd >= 0)
            close(fd);
    }
}

/* A directory's position is that of its descriptor, so one listing at a time. */
void slot_lock(struct plane *p, const struct fdref *ref) {
    if (ref->slot >= 0)
        pthread_mutex_lock(&p->slots[ref->slot].reading);
}

void slot_unlock(struct plane *p, const struct fdref *ref) {
    if (ref->slot >= 0)
        pthread_mutex_unlock(&p->slots[ref->slot].reading);
}
