/* The nodes the kernel knows, by id. Node id = bit 62 | number of the tree << 40 | inode number, so ids
   are the same at the next mount. Every user holds a reference; the kernel's lookups count as one. */
#include "plane.h"

#define FIRST_SIZE 256

static struct shard *shard_of(struct plane *p, uint64_t id) {
    return &p->shards[(id ^ id >> INODE_BITS) % SHARDS];
}

static size_t bucket_of(const struct shard *shard, uint64_t id) {
    return (id * 0x9E3779B97F4A7C15ULL >> 32) & (shard->size - 1);
}

pthread_mutex_t *node_lock(struct plane *p, const struct node *node) {
    return &shard_of(p, node->id)->lock;
}

/* Held while a node's data is stored in the kernel's cache; never taken with node_lock held. */
pthread_mutex_t *node_store_lock(struct plane *p, const struct node *node) {
    return &shard_of(p, node->id)->storing;
}

int nodes_init(struct plane *p) {
    pthread_mutex_init(&p->parents_lock, NULL);
    for (int i = 0; i < SHARDS; i++) {
        struct shard *shard = &p->shards[i];
        pthread_mutex_init(&shard->lock, NULL);
        pthread_mutex_init(&shard->storing, NULL);
        shard->size = FIRST_SIZE;
        shard->buckets = calloc(shard->size, sizeof *shard->buckets);
        if (!shard->buckets)
            return -ENOMEM;
    }
    return 0;
}

uint64_t tree_id(const struct tree *tree, uint64_t inode) {
    return OURS | (uint64_t)tree->number << INODE_BITS | (inode & INODE_MASK);
}

static void grow(struct shard *shard) {
    size_t size = shard->size * 2, old = shard->size;
    struct node **buckets = calloc(size, sizeof *buckets), **before = shard->buckets;
    if (!buckets)
        return; /* longer chains, nothing worse */
    shard->buckets = buckets;
    shard->size = size;
    for (size_t i = 0; i < old; i++)
        for (struct node *node = before[i], *next; node; node = next) {
            next = node->next;
            size_t at = bucket_of(shard, node->id);
            node->next = buckets[at];
            buckets[at] = node;
        }
    free(before);
}

static struct node *find_locked(struct shard *shard, uint64_t id) {
    struct node *node = shard->buckets[bucket_of(shard, id)];
    while (node && node->id != id)
        node = node->next;
    return node;
}

struct node *node_find(struct plane *p, uint64_t id) {
    struct shard *shard = shard_of(p, id);
    pthread_mutex_lock(&shard->lock);
    struct node *node = find_locked(shard, id);
    if (node)
        atomic_fetch_add(&node->refs, 1);
    pthread_mutex_unlock(&shard->lock);
    return node;
}

void node_hold(struct node *node) {
    atomic_fetch_add(&node->refs, 1);
}

static void unlink_locked(struct shard *shard, struct node *node) {
    struct node **at = &shard->buckets[bucket_of(shard, node->id)];
    while (*at && *at != node)
        at = &(*at)->next;
    if (*at) {
        *at = node->next;
        shard->count--;
    }
    node->detached = true;
}

static struct node *node_free(struct plane *p, struct node *node) {
    struct node *parent = node->parent;
    struct export *ex = node->tree->export;
    fd_drop(p, node);
    if (node->pin >= 0) {
        close(node->pin);
        atomic_fetch_sub(&p->pinned, 1);
    }
    free(node->data);
    free(node->handle);
    free(node->name);
    free(node);
    atomic_fetch_sub(&p->node_count, 1);
    export_node_gone(p, ex);
    return parent;
}

/* A parent may be held by its child only, so letting go walks up; a loop, because trees are deep. */
void node_put(struct plane *p, struct node *node) {
    while (node) {
        struct shard *shard = shard_of(p, node->id);
        pthread_mutex_lock(&shard->lock);
        bool last = atomic_fetch_sub(&node->refs, 1) == 1;
        if (last && !node->detached)
            unlink_locked(shard, node);
        pthread_mutex_unlock(&shard->lock);
        if (!last)
            return;
        node = node_free(p, node);
    }
}

static bool same(const struct node *node, const struct tree *tree, const struct handle *handle) {
    if (node->tree != tree)
        return false;
    if (!handle || !node->handle)
        return !handle && !node->handle;
    return node->handle->length == handle->length && node->handle->type == handle->type &&
           !memcmp(node->handle->bytes, handle->bytes, handle->length);
}

static struct handle *handle_copy(const struct handle *handle) {
    size_t size = offsetof(struct handle, bytes) + handle->length;
    struct handle *copy = malloc(size);
    if (copy)
        memcpy(copy, handle, size);
    return copy;
}

static struct node *node_new(struct plane *p, struct tree *tree, uint64_t id, const struct handle *handle,
                             struct node *parent, const char *name, bool directory) {
    struct node *node = calloc(1, sizeof *node);
    if (!node)
        return NULL;
    node->id = id;
    node->tree = tree;
    node->slot = -1;
    atomic_init(&node->pin, -1);
    node->directory = directory;
    atomic_init(&node->refs, 1);
    if (handle) {
        node->handle = handle_copy(handle);
        node->generation = handle_digest(handle);
    }
    if (name)
        node->name = strdup(name);
    if ((handle && !node->handle) || (name && !node->name)) {
        free(node->handle);
        free(node->name);
        free(node);
        return NULL;
    }
    if (parent) {
        node_hold(parent);
        node->parent = parent;
        node->by_name = true;
    }
    atomic_fetch_add(&tree->export->nodes, 1);
    atomic_fetch_add(&p->node_count, 1);
    return node;
}

/* An inode number that was used again: the kernel's lookups are counted per number. */
static void replace_locked(struct shard *shard, struct node *old, struct node *node) {
    node->lookups = old->lookups;
    if (old->lookups)
        atomic_fetch_add(&node->refs, 1);
    old->lookups = 0;
    unlink_locked(shard, old);
}

/* Whether names have to be kept: the gate is told them, and without handles they lead to the node. */
static bool wants_name(const struct tree *tree) {
    return tree->kind == BY_NAME || tree->export->flags & FSD_GATED;
}

static void set_place(struct node *node, const char *name) {
    if (!name || !wants_name(node->tree) || (node->name && !strcmp(node->name, name)))
        return;
    char *copy = strdup(name);
    if (copy) {
        free(node->name);
        node->name = copy;
    }
}

static bool is_above(const struct node *node, const struct node *below) {
    while (below && below != node)
        below = below->parent;
    return below;
}

/* Note where a node is met now. Names seen at different times may contradict each other: one that would
   put a directory below itself is left alone, and it is found again when it is next looked up. Returns
   what the caller has to put. */
static struct node *set_parent(struct plane *p, struct node *node, struct node *parent) {
    struct node *before = NULL;
    pthread_mutex_lock(&p->parents_lock);
    if (node->parent && node->parent != parent && !is_above(node, parent)) {
        before = node->parent;
        node_hold(parent);
        node->parent = parent;
    }
    pthread_mutex_unlock(&p->parents_lock);
    return before;
}

/* The directory a node is reached through, held; NULL where a handle leads to it. */
struct node *node_parent(struct plane *p, struct node *node) {
    pthread_mutex_lock(&p->parents_lock);
    struct node *parent = node->parent;
    if (parent)
        node_hold(parent);
    pthread_mutex_unlock(&p->parents_lock);
    return parent;
}

/* The held node of an inode; counts no lookup. `handle` is NULL where the inode number is enough. */
struct node *node_enter(struct plane *p, struct tree *tree, uint64_t inode, const struct handle *handle,
                        struct node *parent, const char *name, bool directory) {
    uint64_t id = tree_id(tree, inode);
    struct shard *shard = shard_of(p, id);
    bool by_name = parent && (tree->kind == BY_NAME || (tree->kind == BY_BTRFS_HANDLE && inode & STAND_IN));
    struct node *replaced = NULL, *moved = NULL;
    pthread_mutex_lock(&shard->lock);
    struct node *node = find_locked(shard, id);
    if (node && same(node, tree, handle)) {
        atomic_fetch_add(&node->refs, 1);
        set_place(node, name);
        if (by_name)
            moved = set_parent(p, node, parent);
        pthread_mutex_unlock(&shard->lock);
        node_put(p, moved);
        return node;
    }
    replaced = node;
    node = node_new(p, tree, id, handle, by_name ? parent : NULL, by_name || wants_name(tree) ? name : NULL,
                    directory);
    if (node) {
        uint64_t counted = replaced ? replaced->lookups : 0;
        if (replaced)
            replace_locked(shard, replaced, node);
        if (!counted)
            replaced = NULL;
        size_t at = bucket_of(shard, id);
        node->next = shard->buckets[at];
        shard->buckets[at] = node;
        if (++shard->count > shard->size * 2)
            grow(shard);
    } else {
        replaced = NULL;
    }
    pthread_mutex_unlock(&shard->lock);
    node_put(p, replaced); /* what the kernel's lookups held */
    return node;
}

void node_count(struct plane *p, struct node *node) {
    struct shard *shard = shard_of(p, node->id);
    pthread_mutex_lock(&shard->lock);
    struct node *now = node->detached ? find_locked(shard, node->id) : node;
    if (now && !now->lookups++)
        atomic_fetch_add(&now->refs, 1);
    pthread_mutex_unlock(&shard->lock);
}

void node_forget(struct plane *p, uint64_t id, uint64_t lookups) {
    struct shard *shard = shard_of(p, id);
    pthread_mutex_lock(&shard->lock);
    struct node *node = find_locked(shard, id);
    bool gone = node && node->lookups && node->lookups <= lookups;
    if (node && lookups)
        node->lookups = gone || node->lookups < lookups ? 0 : node->lookups - lookups;
    pthread_mutex_unlock(&shard->lock);
    if (gone)
        node_put(p, node);
}

/* Note under which name a node is met from now on. */
void node_rename(struct plane *p, struct node *node, struct node *parent, const char *name) {
    pthread_mutex_lock(node_lock(p, node));
    set_place(node, name);
    struct node *before = set_parent(p, node, parent);
    pthread_mutex_unlock(node_lock(p, node));
    node_put(p, before);
}

/* The name a node was last met under, into LONGEST_NAME + 1 bytes; empty when it is not known. */
void node_name(struct plane *p, struct node *node, char *name) {
    pthread_mutex_lock(node_lock(p, node));
    size_t length = node->name ? strnlen(node->name, LONGEST_NAME) : 0;
    memcpy(name, node->name ? node->name : "", length);
    pthread_mutex_unlock(node_lock(p, node));
    name[length] = 0;
}

#define PINNED_MAX 1024

/* Keep an inode that loses its last name reachable while the kernel holds it. `fd` stays the caller's. */
void node_pin(struct plane *p, struct node *node, int fd) {
    pthread_mutex_lock(node_lock(p, node));
    if (node->lookups && node->pin < 0 && atomic_load(&p->pinned) < PINNED_MAX) {
        node->pin = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (node->pin >= 0)
            atomic_fetch_add(&p->pinned, 1);
    }
    pthread_mutex_unlock(node_lock(p, node));
}

/* Let go of all inodes kept reachable in an export. Others may be using the descriptors, so the numbers
   stay taken, and mean something harmless from now on. */
void nodes_unpin(struct plane *p, const struct export *ex) {
    for (int i = 0; i < SHARDS && atomic_load(&p->pinned); i++) {
        struct shard *shard = &p->shards[i];
        pthread_mutex_lock(&shard->lock);
        for (size_t at = 0; at < shard->size; at++)
            for (struct node *node = shard->buckets[at]; node; node = node->next)
                if (node->tree->export == ex && node->pin >= 0)
                    dup3(p->stop_fd, node->pin, O_CLOEXEC);
        pthread_mutex_unlock(&shard->lock);
    }
}

/* The ids of a shard's nodes in an export, or in all of which changes made elsewhere are told; the caller frees
   them. Files among them have to be looked at again when they are opened. */
uint64_t *node_ids(struct plane *p, int shard, const struct export *ex, size_t *count) {
    struct shard *among = &p->shards[shard];
    pthread_mutex_lock(&among->lock);
    uint64_t *ids = malloc((among->count + 1) * sizeof *ids);
    *count = 0;
    for (size_t at = 0; ids && at < among->size; at++)
        for (struct node *node = among->buckets[at]; node; node = node->next)
            if (ex ? node->tree->export == ex : atomic_load(&node->tree->told) || atomic_load(&node->tree->rests)) {
                node->settled = false;
                ids[(*count)++] = node->id;
            }
    pthread_mutex_unlock(&among->lock);
    return ids;
}

static void free_tables(struct plane *p) {
    for (int i = 0; i < SHARDS; i++) {
        free(p->shards[i].buckets);
        p->shards[i].buckets = NULL;
        pthread_mutex_destroy(&p->shards[i].lock);
        pthread_mutex_destroy(&p->shards[i].storing);
    }
}

/* When nothing runs any more: let go of every node, children before what they hold. */
void nodes_free(struct plane *p) {
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < SHARDS; i++)
            for (size_t at = 0; p->shards[i].buckets && at < p->shards[i].size; at++)
                for (struct node *node = p->shards[i].buckets[at]; node; node = node->next)
                    if (node->lookups) {
                        node_forget(p, node->id, node->lookups);
                        again = true;
                        break;
                    }
    }
    free_tables(p);
    pthread_mutex_destroy(&p->parents_lock);
}
