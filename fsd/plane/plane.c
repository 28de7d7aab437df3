/* Starting and stopping, and the figures. */
#include "plane.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

#define ROOMY (4 << 20)

/* Make room for whole messages in the socket; as many pages as fit go into one request. */
static uint32_t size_buffers(int fd) {
    int wanted = ROOMY, got = 0;
    socklen_t length = sizeof got;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof wanted))
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof wanted);
    if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &got, &length) || got >= ROOMY)
        return DATA_MAX / 4096;
    uint32_t pages = (uint32_t)got / 2 / 4096;
    return pages > 2 ? (pages - 2 < 256 ? pages - 2 : 256) : 1;
}

static int init(struct plane *p, const fsd_settings *settings) {
    int error = park_init(p, settings->noise ? settings->noise : "");
    p->published.queue = -1; /* nothing to close if it gets no further */
    p->device = settings->device;
    p->socket = settings->socket;
    p->threads = settings->threads < 1 ? 1 : settings->threads;
    p->spin_max = settings->spin;
    p->quiet = settings->quiet;
    p->idle = settings->idle;
    latency_start(p, settings->keep_awake);
    p->want_passthrough = settings->passthrough;
    p->own_uid = geteuid();
    p->own_gid = getegid();
    p->max_pages = size_buffers(p->socket);
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->pump_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_rwlock_init(&p->exports_lock, NULL);
    pthread_mutex_init(&p->files_lock, NULL);
    pthread_mutex_init(&p->pending_lock, NULL);
    pthread_mutex_init(&p->queue_lock, NULL);
    notify_init(p);
    turns_init(p);
    if (!error)
        error = nodes_init(p);
    if (!error)
        error = published_init(p);
    if (!error)
        error = fds_init(p, settings->descriptors);
    if (!error)
        error = ahead_start(p);
    if (!error)
        error = watches_start(p);
    return p->event_fd < 0 || p->stop_fd < 0 || p->pump_fd < 0 ? -EMFILE : error;
}

static void drop_root(struct export *ex, struct plane *p) {
    struct node *root = ex->live ? ex->pinned_root : NULL;
    ex->live = true; /* exports_free takes it */
    ex->pinned_root = NULL;
    if (root)
        node_put(p, root);
}

static void release(struct plane *p) {
    files_free(p);
    for (struct export *ex = p->exports; ex; ex = ex->next)
        drop_root(ex, p);
    nodes_free(p);
    exports_free(p);
    watches_free(p);
    fds_free(p);
    forward_free(p);
    notify_free(p);
    turns_free(p);
    park_free(p);
    published_free(p);
    pthread_rwlock_destroy(&p->exports_lock);
    close(p->event_fd);
    close(p->stop_fd);
    close(p->pump_fd);
    latency_stop(p);
    free(p);
}

/* Serve requests from settings->device until fsd_stop; NULL with errno set. Descriptors stay the caller's. */
plane *fsd_start(const fsd_settings *settings) {
    struct plane *p = calloc(1, sizeof *p);
    int error = p ? init(p, settings) : -ENOMEM;
    if (!error && fcntl(p->device, F_SETFL, O_NONBLOCK))
        error = -errno;
    if (!error)
        error = loop_start(p);
    if (p && error)
        fsd_stop(p);
    errno = -error;
    return error ? NULL : p;
}

void fsd_stop(plane *p) {
    loop_stop(p);
    ahead_stop(p);
    release(p);
}

int fsd_event_fd(plane *p) {
    return p->event_fd;
}

void fsd_invalidate_entry(plane *p, uint64_t parent, const char *name) {
    notify_inval_entry(p, parent, name);
}

static uint64_t kept_descriptors(struct plane *p) {
    uint64_t kept = 0;
    pthread_mutex_lock(&p->slots_lock);
    for (int i = 0; i < p->slot_count; i++)
        kept += p->slots[i].fd >= 0;
    pthread_mutex_unlock(&p->slots_lock);
    return kept;
}

static uint64_t count_exports(struct plane *p) {
    uint64_t count = 0;
    pthread_rwlock_rdlock(&p->exports_lock);
    for (struct export *ex = p->exports; ex; ex = ex->next)
        count++;
    pthread_rwlock_unlock(&p->exports_lock);
    return count;
}

/* Trees that others may change, and of which changes are told or not. */
static void count_watched(struct plane *p, fsd_stats *stats) {
    pthread_rwlock_rdlock(&p->exports_lock);
    for (struct export *ex = p->exports; ex; ex = ex->next)
        for (struct tree *tree = ex->trees; tree && ex->live && !(ex->flags & FSD_FROZEN); tree = tree->next)
            ++*(atomic_load(&tree->told) || atomic_load(&tree->rests) ? &stats->watched : &stats->unwatched);
    pthread_rwlock_unlock(&p->exports_lock);
    stats->watching = watches_count(p);
}

void fsd_stats_read(plane *p, fsd_stats *stats) {
    *stats = (fsd_stats){.requests = atomic_load(&p->requests),
                         .forwarded = atomic_load(&p->forwarded),
                         .parked = atomic_load(&p->parked_total),
                         .taken = atomic_load(&p->taking.count),
                         .refused = atomic_load(&p->refused),
                         .nodes = atomic_load(&p->node_count),
                         .files = atomic_load(&p->open_files),
                         .exports = count_exports(p),
                         .descriptors = kept_descriptors(p),
                         .backings = atomic_load(&p->backings),
                         .pinned = atomic_load(&p->pinned),
                         .polls = atomic_load(&p->polls),
                         .spins = atomic_load(&p->spins),
                         .awakenings = atomic_load(&p->awakenings),
                         .malformed = atomic_load(&p->malformed),
                         .searches = atomic_load(&p->searches),
                         .lost = atomic_load(&p->lost),
                         .published = atomic_load(&p->published.count),
                         .held = published_held(p),
                         .answered = atomic_load(&p->published.answered),
                         .passthrough = atomic_load(&p->passthrough),
                         .ended = atomic_load(&p->ended),
                         .threads = p->threads,
                         .minor = p->minor};
    count_watched(p, stats);
    for (int i = 0; i < 64; i++)
        stats->operations[i] = atomic_load(&p->operations[i]);
    for (int i = 0; i < 64; i++)
        stats->asked[i] = atomic_load(&p->asked[i]);
}
