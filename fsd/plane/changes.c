/* What others change on the real path, and what the kernel has to forget because of it.

   An answer that was found out before a change must not be kept after it. The count of changes goes up before the
   kernel is told, so an answer that is put together later gets a short time (reply.c). One that was put together
   before is about a node that is in the table: when the kernel does not know that node yet, the answer is under
   way, and the kernel is told again. Where it knows it, it drops attributes that were asked for earlier; and names
   change under the directory's lock, which whoever looks one up holds until he has the answer. */
#include "watch.h"

#include <sys/fanotify.h>

#define READS_MAX 16
#define TREES_MAX 256
#define RETRY_TIMES 400
#define ENTRIES (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO)
#define DATA (FAN_MODIFY | FAN_CLOSE_WRITE)

/* A change: the directory and the name in it, and the object itself, as far as they were told. */
struct change {
    uint64_t mask;
    int tid;
    bool has_directory, has_object;
    struct handle directory, object;
    char name[LONGEST_NAME + 1];
};

/* -- taking events apart --------------------------------------------------------------------------- */

/* The inode and the subvolume a handle names; false for a kind of handle whose make is not known here. */
bool change_object(const struct handle *handle, uint64_t *inode, uint64_t *subvolume) {
    uint32_t low;
    *subvolume = 0;
    switch (handle->type) {
    case BTRFS_FID:
    case BTRFS_FID + 1: /* FILEID_BTRFS_WITH_PARENT, _WITH_PARENT_ROOT */
    case BTRFS_FID + 2:
        memcpy(inode, handle->bytes, 8);
        memcpy(subvolume, handle->bytes + 8, 8);
        return handle->length >= BTRFS_FID_LENGTH;
    case 1: /* FILEID_INO32_GEN, _PARENT */
    case 2:
        memcpy(&low, handle->bytes, 4);
        *inode = low;
        return handle->length >= 8;
    case 0x81: /* the same of XFS with 64 bits */
    case 0x82:
        memcpy(inode, handle->bytes, 8);
        return handle->length >= 12;
    default:
        return false;
    }
}

static bool take_handle(const unsigned char *at, size_t room, struct handle *handle, size_t *used) {
    uint32_t length;
    if (room < 8)
        return false;
    memcpy(&length, at, 4);
    if (length > room - 8 || length > sizeof handle->bytes)
        return false;
    handle->length = length;
    memcpy(&handle->type, at + 4, 4);
    memcpy(handle->bytes, at + 8, length);
    *used = 8 + length;
    return true;
}

static void take_record(struct change *change, unsigned type, const unsigned char *at, size_t length) {
    struct handle handle;
    size_t used;
    if (!take_handle(at, length, &handle, &used))
        return;
    if (type == FAN_EVENT_INFO_TYPE_FID) {
        change->object = handle;
        change->has_object = true;
    } else if (type == FAN_EVENT_INFO_TYPE_DFID_NAME || type == FAN_EVENT_INFO_TYPE_DFID) {
        size_t name = type == FAN_EVENT_INFO_TYPE_DFID ? 0 : strnlen((const char *)at + used, length - used);
        name = name > LONGEST_NAME ? LONGEST_NAME : name;
        memcpy(change->name, at + used, name);
        change->name[name] = 0;
        change->directory = handle;
        change->has_directory = true;
    }
}

/* Events and their records begin at multiples of four bytes only, so their heads are copied. */
static void take_change(struct change *change, const struct fanotify_event_metadata *event, const unsigned char *at) {
    struct fanotify_event_info_header record;
    const unsigned char *end = at + event->event_len;
    size_t head = offsetof(struct fanotify_event_info_fid, handle);
    change->mask = event->mask;
    change->tid = event->pid;
    change->has_directory = change->has_object = false;
    change->name[0] = 0;
    for (at += event->metadata_len; at + sizeof record <= end; at += record.len) {
        memcpy(&record, at, sizeof record);
        if (record.len < head || record.len > end - at)
            return;
        take_record(change, record.info_type, at + head, record.len - head);
    }
}

/* -- telling the kernel ---------------------------------------------------------------------------- */

static void try_again(struct plane *p, uint64_t id) {
    struct retries *retries = &p->watches->retries;
    for (unsigned i = 0; i < retries->count; i++)
        if (retries->items[i].id == id)
            return;
    if (retries->count < RETRIES_MAX)
        retries->items[retries->count++] = (struct retry){id, RETRY_TIMES};
    else
        p->watches->again = true;
}

static void forget_shard(struct plane *p, int shard) {
    size_t count = 0;
    uint64_t *ids = node_ids(p, shard, NULL, &count);
    for (size_t i = 0; i < count; i++)
        if (notify_inode_now(p, ids[i], true) == -ENOENT)
            try_again(p, ids[i]);
    free(ids);
}

/* Nothing the kernel keeps of a watched tree is sure any more. */
void changes_forget_all(struct plane *p) {
    atomic_fetch_add(&p->changes, 1);
    p->watches->again = false;
    notify_ask_again(p);
    for (int shard = 0; shard < SHARDS; shard++)
        forget_shard(p, shard);
}

/* Tell again of nodes the kernel did not know. Whether some are left. */
bool changes_retry(struct plane *p) {
    struct retries *retries = &p->watches->retries;
    if (p->watches->again)
        changes_forget_all(p);
    for (unsigned i = 0; i < retries->count;) {
        struct retry *retry = &retries->items[i];
        struct node *node = node_find(p, retry->id);
        bool over = !node || !--retry->times || notify_inode_now(p, retry->id, true) != -ENOENT;
        if (node)
            node_put(p, node);
        if (over)
            *retry = retries->items[--retries->count];
        else
            i++;
    }
    return retries->count;
}

static void changes_lost(struct plane *p) {
    atomic_fetch_add(&p->lost, 1);
    changes_forget_all(p);
}

/* A node of which something changed; `data`: what it holds, beside its attributes. */
static void forget(struct plane *p, struct node *node, bool data) {
    if (data)
        node->settled = false;
    if (notify_inode_now(p, node->id, data) == -ENOENT)
        try_again(p, node->id);
}

static void entry_changed(struct plane *p, uint64_t directory, const char *name, uint64_t *last) {
    struct node *node = node_find(p, directory);
    if (!node)
        return; /* so the kernel keeps no name in it */
    if (*last != directory)
        forget(p, node, true);
    *last = directory;
    notify_name_gone(p, directory, name);
    node_put(p, node);
}

static void object_changed(struct plane *p, uint64_t id, uint64_t mask) {
    struct node *node = node_find(p, id);
    if (!node)
        return;
    if (mask & DATA)
        node->written = !(mask & FAN_CLOSE_WRITE);
    forget(p, node, mask & DATA);
    node_put(p, node);
}

/* What the plane's own threads do to a tree the kernel knows; not if another tree shows the same. */
static bool is_known(struct plane *p, const struct change *change, uint32_t trees) {
    bool own = false;
    for (unsigned i = 0; i < atomic_load(&p->own_tid_count) && i < OWN_TIDS; i++)
        own |= atomic_load(&p->own_tids[i]) == change->tid;
    return own && trees == 1;
}

/* `last`: the directory of which the kernel was told in this reading already. */
static void apply(struct plane *p, const struct watch *watch, const struct change *change, uint64_t *last) {
    uint64_t ids[TREES_MAX];
    bool names = change->mask & ENTRIES && change->has_directory;
    const struct handle *object = change->has_object && !names ? &change->object : &change->directory;
    uint32_t count = watched_ids(p, watch, object, ids, TREES_MAX);
    if (!count || is_known(p, change, count))
        return;
    atomic_fetch_add(&p->changes, 1);
    for (uint32_t i = 0; i < count; i++)
        if (names)
            entry_changed(p, ids[i], change->name, last);
        else
            object_changed(p, ids[i], change->mask);
    if (count == TREES_MAX)
        changes_lost(p);
}

static void take_all(struct plane *p, const struct watch *watch, const unsigned char *at, size_t length) {
    struct fanotify_event_metadata event;
    struct change change;
    uint64_t last = 0;
    for (size_t left = length; left >= sizeof event; left -= event.event_len, at += event.event_len) {
        memcpy(&event, at, sizeof event);
        if (event.event_len < event.metadata_len || event.metadata_len < sizeof event || event.event_len > left)
            return;
        take_change(&change, &event, at);
        if (change.mask & FAN_Q_OVERFLOW)
            changes_lost(p);
        else
            apply(p, watch, &change, &last);
    }
}

/* Read what changed by now, and make the kernel forget it. */
void changes_take(struct plane *p, const struct watch *watch, int group) {
    unsigned char *events = p->watches->events;
    for (int reads = 0; reads < READS_MAX && !p->stopping; reads++) {
        ssize_t got = read(group, events, EVENTS_SIZE);
        if (got <= 0)
            return;
        take_all(p, watch, events, (size_t)got);
        if (got < EVENTS_SIZE / 2)
            return;
    }
}
