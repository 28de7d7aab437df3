/* The thread that reads trees ahead of those who walk them, and has data written before a tree is read. */
#include "scan.h"

#define FOLLOWED (32u << 10) /* windows of this size and more are followed by the next one at once */
#define REACH 1024           /* an inode so much after the beginning of a window may be in it */

/* -- asking ---------------------------------------------------------------------------------------- */

/* Make a tree readable in bulk: soon, and unless its filesystem cannot be synced. */
void ahead_settle(struct plane *p, struct tree *tree) {
    struct scan *s = p->scan;
    struct unsettled *item = malloc(sizeof *item);
    int expected = UNSETTLED;
    if (!item || !atomic_compare_exchange_strong(&tree->settled, &expected, SETTLING)) {
        free(item);
        return;
    }
    item->number = tree->export->number;
    item->subvolume = tree->subvolume;
    item->fd = fcntl(tree->export->mount, F_DUPFD_CLOEXEC, 3);
    pthread_mutex_lock(&s->lock);
    item->next = s->unsettled;
    s->unsettled = item;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* Have the window read that follows one which grew large, that is, one that a walk led to. Under the lock. */
void ahead_want(struct scan *s, const struct tree *tree, struct window *w) {
    struct ahead *ahead = &s->ahead;
    if (w->followed || w->size < FOLLOWED || !w->partial || ahead->wanted || ahead->reading)
        return;
    int fd = fcntl(tree->export->mount, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return;
    w->followed = true;
    *ahead = (struct ahead){.wanted = true,
                            .serial = w->serial,
                            .size = w->size * 2 < WINDOW_MAX ? w->size * 2 : WINDOW_MAX,
                            .subvolume = tree->subvolume,
                            .first = w->last + 1,
                            .fd = fd};
    pthread_cond_signal(&s->wake);
}

static bool reaches(const struct ahead *ahead, uint32_t serial, uint64_t inode) {
    return ahead->serial == serial && ahead->first <= inode && inode - ahead->first < REACH;
}

/* Wait for an inode that is being read ahead; false when it is not. What was asked for but not begun is
   left to the caller, who learns how much to read. Under the lock. */
bool ahead_wait(struct scan *s, uint32_t serial, uint64_t inode, uint32_t *size) {
    struct ahead *ahead = &s->ahead;
    if (!reaches(ahead, serial, inode) || !(ahead->wanted || ahead->reading))
        return false;
    if (ahead->wanted) {
        ahead->wanted = false;
        close(ahead->fd);
        *size = ahead->size;
        return false;
    }
    pthread_cond_wait(&s->done, &s->lock);
    return true;
}

/* -- the thread ------------------------------------------------------------------------------------ */

static void mark(struct plane *p, const struct unsettled *item) {
    pthread_rwlock_rdlock(&p->exports_lock);
    struct export *ex = export_find(p, item->number);
    for (struct tree *tree = ex ? ex->trees : NULL; tree; tree = tree->next)
        if (tree->subvolume == item->subvolume && atomic_load(&tree->settled) == SETTLING)
            atomic_store(&tree->settled, SETTLED);
    pthread_rwlock_unlock(&p->exports_lock);
}

static void settle(struct plane *p) {
    struct scan *s = p->scan;
    struct unsettled *item = s->unsettled;
    s->unsettled = item->next;
    pthread_mutex_unlock(&s->lock);
    if (item->fd >= 0 && !syncfs(item->fd))
        mark(p, item);
    if (item->fd >= 0)
        close(item->fd);
    free(item);
    pthread_mutex_lock(&s->lock);
}

static void read_ahead(struct scan *s) {
    struct ahead *ahead = &s->ahead;
    struct window *w = scan_room(s);
    ahead->wanted = false;
    if (w) {
        w->first = ahead->first;
        w->size = ahead->size;
        ahead->reading = true;
        pthread_mutex_unlock(&s->lock);
        int error = window_read(w, ahead->fd, ahead->subvolume);
        pthread_mutex_lock(&s->lock);
        ahead->reading = false;
        scan_put(s, w, error ? 0 : ahead->serial);
        w->users--;
    }
    close(ahead->fd);
    pthread_cond_broadcast(&s->done);
}

static void *ahead_main(void *argument) {
    struct plane *p = argument;
    struct scan *s = p->scan;
    pthread_mutex_lock(&s->lock);
    while (!p->stopping)
        if (s->unsettled)
            settle(p);
        else if (s->ahead.wanted)
            read_ahead(s);
        else
            pthread_cond_wait(&s->wake, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int ahead_start(struct plane *p) {
    struct scan *s = p->scan = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->done, NULL);
    int error = thread_start(&s->thread, ahead_main, p);
    s->started = !error;
    return error;
}

static void forget_unsettled(struct scan *s) {
    for (struct unsettled *item = s->unsettled, *next; item; item = next) {
        next = item->next;
        if (item->fd >= 0)
            close(item->fd);
        free(item);
    }
}

/* When the plane's other threads have ended. */
void ahead_stop(struct plane *p) {
    struct scan *s = p->scan;
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    p->stopping = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    scan_drop(p);
    forget_unsettled(s);
    if (s->ahead.wanted)
        close(s->ahead.fd);
    pthread_cond_destroy(&s->done);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
