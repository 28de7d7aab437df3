/* Telling the kernel that what it keeps is outdated. It may wait there for locks whose holders wait for
   an answer, so threads of their own do it: one for what Python says, one for names that changed elsewhere. */
#include "plane.h"

#define MESSAGE_MAX (sizeof(struct fuse_out_header) + 64 + LONGEST_NAME + 1)
#define STUCK_NS 100000000L /* as long as it takes to tell one name at most, before all are asked for again */

/* -- mailboxes ------------------------------------------------------------------------------------- */

static bool post(struct mailbox *box, const void *message, size_t length) {
    struct queued *item = malloc(sizeof *item + length);
    if (!item)
        return false;
    item->next = NULL;
    item->length = length;
    memcpy(item->bytes, message, length);
    pthread_mutex_lock(&box->lock);
    *(box->last ? &box->last->next : &box->first) = item;
    box->last = item;
    pthread_cond_signal(&box->wake);
    pthread_mutex_unlock(&box->lock);
    return true;
}

static struct queued *take_all(struct mailbox *box) {
    pthread_mutex_lock(&box->lock);
    struct queued *items = box->first;
    box->first = box->last = NULL;
    pthread_mutex_unlock(&box->lock);
    return items;
}

static void free_all(struct queued *items) {
    for (struct queued *next; items; items = next) {
        next = items->next;
        free(items);
    }
}

static struct queued *next_of(struct plane *p, struct mailbox *box) {
    pthread_mutex_lock(&box->lock);
    while (!p->stopping && !box->first)
        pthread_cond_wait(&box->wake, &box->lock);
    struct queued *item = p->stopping ? NULL : box->first;
    if (item)
        box->first = item->next;
    if (!box->first)
        box->last = NULL;
    pthread_mutex_unlock(&box->lock);
    return item;
}

static void send_from(struct plane *p, struct mailbox *box) {
    struct queued *item;
    while ((item = next_of(p, box))) {
        atomic_store(&box->busy_since, monotonic_ns());
        device_write(p, item->bytes, item->length);
        atomic_store(&box->busy_since, 0);
        free(item);
    }
}

void *notifier_main(void *argument) {
    struct plane *p = argument;
    send_from(p, &p->mail[NOTICES]);
    return NULL;
}

void *namer_main(void *argument) {
    struct plane *p = argument;
    send_from(p, &p->mail[NAMES]);
    return NULL;
}

/* -- what is told ---------------------------------------------------------------------------------- */

static size_t build(unsigned char *message, int code, const void *what, size_t length, const char *name) {
    struct fuse_out_header header = {.error = code};
    size_t tail = name ? strnlen(name, LONGEST_NAME) : 0;
    header.len = (uint32_t)(sizeof header + length + (name ? tail + 1 : 0));
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, what, length);
    if (name)
        memcpy(message + sizeof header + length, name, tail);
    message[sizeof header + length + tail] = 0;
    return header.len;
}

/* Send a message after all that were given before; false when there is no memory for it. */
bool notify_later(struct plane *p, const void *message, size_t length) {
    return post(&p->mail[NOTICES], message, length);
}

static void post_entry(struct mailbox *box, uint64_t parent, const char *name) {
    unsigned char message[MESSAGE_MAX];
    struct fuse_notify_inval_entry_out what = {.parent = parent, .namelen = (uint32_t)strnlen(name, LONGEST_NAME)};
    post(box, message, build(message, FUSE_NOTIFY_INVAL_ENTRY, &what, sizeof what, name));
}

void notify_inval_entry(struct plane *p, uint64_t parent, const char *name) {
    post_entry(&p->mail[NOTICES], parent, name);
}

/* The same for a name that was made, moved or removed elsewhere. */
void notify_name_gone(struct plane *p, uint64_t parent, const char *name) {
    post_entry(&p->mail[NAMES], parent, name);
}

void notify_inval_inode(struct plane *p, uint64_t id) {
    unsigned char message[MESSAGE_MAX];
    struct fuse_notify_inval_inode_out what = {.ino = id};
    notify_later(p, message, build(message, FUSE_NOTIFY_INVAL_INODE, &what, sizeof what, NULL));
}

/* Make the kernel forget a node's attributes, and its data or listing too, before this returns: it waits for
   nobody but readers of the data. ENOENT: the kernel does not know the node. */
int notify_inode_now(struct plane *p, uint64_t id, bool data) {
    unsigned char message[MESSAGE_MAX];
    struct fuse_notify_inval_inode_out what = {.ino = id, .off = data ? 0 : -1};
    return device_write(p, message, build(message, FUSE_NOTIFY_INVAL_INODE, &what, sizeof what, NULL));
}

/* Make the kernel look every name up again when it is next used, which Linux can since 6.16. */
void notify_ask_again(struct plane *p) {
    unsigned char message[MESSAGE_MAX];
    size_t length = build(message, PLANE_NOTIFY_INC_EPOCH, "", 0, NULL);
    device_write(p, message, length);
}

/* A directory's lock may be held by somebody whose request waits for Python, while names in others changed:
   then every name is asked for again, which takes no lock. Whether names are still to be told. */
bool notify_names_stuck(struct plane *p) {
    long since = atomic_load(&p->mail[NAMES].busy_since);
    if (since && monotonic_ns() - since > STUCK_NS) {
        struct queued *untold = take_all(&p->mail[NAMES]);
        if (untold)
            notify_ask_again(p);
        free_all(untold);
    }
    return since;
}

/* -- beginning and end ----------------------------------------------------------------------------- */

void notify_init(struct plane *p) {
    for (struct mailbox *box = p->mail; box < p->mail + MAILBOXES; box++) {
        pthread_mutex_init(&box->lock, NULL);
        pthread_cond_init(&box->wake, NULL);
    }
}

void notify_wake(struct plane *p) {
    for (struct mailbox *box = p->mail; box < p->mail + MAILBOXES; box++) {
        pthread_mutex_lock(&box->lock);
        pthread_cond_broadcast(&box->wake);
        pthread_mutex_unlock(&box->lock);
    }
}

void notify_free(struct plane *p) {
    for (struct mailbox *box = p->mail; box < p->mail + MAILBOXES; box++) {
        free_all(take_all(box));
        pthread_cond_destroy(&box->wake);
        pthread_mutex_destroy(&box->lock);
    }
}
