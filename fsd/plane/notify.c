/* Telling the kernel that what it keeps is outdated. It may wait there for locks whose holders wait for
   an answer, so a thread of its own does it. */
#include "plane.h"

/* Send a message after all that were given before; false when there is no memory for it. */
bool notify_later(struct plane *p, const void *message, size_t length) {
    struct queued *item = malloc(sizeof *item + length);
    if (!item)
        return false;
    item->next = NULL;
    item->length = length;
    memcpy(item->bytes, message, length);
    pthread_mutex_lock(&p->notify_lock);
    *(p->last_notice ? &p->last_notice->next : &p->notices) = item;
    p->last_notice = item;
    pthread_cond_signal(&p->notify_wake);
    pthread_mutex_unlock(&p->notify_lock);
    return true;
}

static void queue_notice(struct plane *p, int code, const void *what, size_t length, const char *name) {
    unsigned char message[sizeof(struct fuse_out_header) + 64 + LONGEST_NAME + 1];
    struct fuse_out_header header = {.error = code};
    size_t tail = name ? strnlen(name, LONGEST_NAME) : 0;
    header.len = (uint32_t)(sizeof header + length + (name ? tail + 1 : 0));
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, what, length);
    if (name)
        memcpy(message + sizeof header + length, name, tail);
    message[sizeof header + length + tail] = 0;
    notify_later(p, message, header.len);
}

void notify_inval_entry(struct plane *p, uint64_t parent, const char *name) {
    struct fuse_notify_inval_entry_out what = {.parent = parent, .namelen = (uint32_t)strnlen(name, LONGEST_NAME)};
    queue_notice(p, FUSE_NOTIFY_INVAL_ENTRY, &what, sizeof what, name);
}

void notify_inval_inode(struct plane *p, uint64_t id) {
    struct fuse_notify_inval_inode_out what = {.ino = id};
    queue_notice(p, FUSE_NOTIFY_INVAL_INODE, &what, sizeof what, NULL);
}

/* Make the kernel look every name up again when it is next used, which Linux can since 6.16. */
void notify_ask_again(struct plane *p) {
    queue_notice(p, PLANE_NOTIFY_INC_EPOCH, "", 0, NULL);
}

static struct queued *next_notice(struct plane *p) {
    pthread_mutex_lock(&p->notify_lock);
    while (!p->stopping && !p->notices)
        pthread_cond_wait(&p->notify_wake, &p->notify_lock);
    struct queued *item = p->stopping ? NULL : p->notices;
    if (item)
        p->notices = item->next;
    if (!p->notices)
        p->last_notice = NULL;
    pthread_mutex_unlock(&p->notify_lock);
    return item;
}

void *notifier_main(void *argument) {
    struct plane *p = argument;
    struct queued *item;
    while ((item = next_notice(p))) {
        while (write(p->device, item->bytes, item->length) < 0 && errno == EINTR)
            ; /* any other error: the kernel does not know the name */
        free(item);
    }
    return NULL;
}

void notify_init(struct plane *p) {
    pthread_mutex_init(&p->notify_lock, NULL);
    pthread_cond_init(&p->notify_wake, NULL);
}

void notify_wake(struct plane *p) {
    pthread_mutex_lock(&p->notify_lock);
    pthread_cond_broadcast(&p->notify_wake);
    pthread_mutex_unlock(&p->notify_lock);
}

void notify_free(struct plane *p) {
    for (struct queued *item = p->notices, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    pthread_cond_destroy(&p->notify_wake);
    pthread_mutex_destroy(&p->notify_lock);
}
