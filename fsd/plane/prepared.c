/* The snapshot before the first write of a burst, without Python. While nobody waits, Python lays ready what the
   next one takes (fsd_prepare). A thread of its own then takes it, one at a time; who writes to the same export
   meanwhile waits along. Python is told afterwards what was taken, and writes it down.

   Whatever is not as it was laid ready is left to Python: those who wait are parked as if there were nothing.
   So is a snapshot that takes long, for it is Python that knows how long writers wait. */
#include "plane.h"

#include <linux/btrfs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <time.h>

#define SLOW_NS 100000000
#define COURTESY_NS 2000000L /* by which Python is told later: the writer needs the processor first */
#define STAMP "%Y%m%dT%H%M%SZ" /* as in store/snapshots.py */
#define NAMES_MAX 100

/* Keep the directory whose directories hold the snapshots. Threads may be using the one before. */
int fsd_prepare_in(plane *p, const char *directory) {
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC), kept = atomic_load(&p->taking.directory);
    if (fd < 0)
        return -errno;
    if (kept < 0) {
        atomic_store(&p->taking.directory, fd);
        return 0;
    }
    int error = dup3(fd, kept, O_CLOEXEC) < 0 ? -errno : 0;
    close(fd);
    return error;
}

/* Lay the next snapshot of an export ready; NULL takes back what was laid ready before. */
int fsd_prepare(plane *p, uint32_t number, const fsd_preparation *preparation) {
    fsd_preparation *copy = preparation ? malloc(sizeof *copy) : NULL;
    if (preparation && !copy)
        return -ENOMEM;
    if (copy)
        *copy = *preparation;
    pthread_rwlock_rdlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    bool live = ex && ex->live;
    if (live)
        copy = atomic_exchange(&ex->prepared, copy);
    pthread_rwlock_unlock(&p->exports_lock);
    free(copy);
    return live ? 0 : -ENOENT;
}

void prepared_drop(struct export *ex) {
    free(atomic_exchange(&ex->prepared, NULL));
}

/* Begin what was laid ready, if its time has come; `source` is a descriptor of the thread's own. */
static bool begin_locked(struct plane *p, struct export *ex) {
    struct taking *t = &p->taking;
    fsd_preparation *by = atomic_exchange(&ex->prepared, NULL), *none = NULL;
    bool due = by && epoch_ns() >= by->not_before_ns;
    t->source = due ? fcntl(ex->mount, F_DUPFD_CLOEXEC, 0) : -1;
    if (t->source >= 0) {
        t->number = ex->number;
        t->by = *by;
        t->told = t->landed = false;
        t->since_ns = monotonic_ns();
        pthread_cond_signal(&t->wake);
    } else if (by && atomic_compare_exchange_strong(&ex->prepared, &none, by)) {
        return false;
    }
    free(by);
    return t->source >= 0;
}

/* Whether a mutation waits for a snapshot that needs nothing of Python; it may begin with it. */
bool prepared_covers_locked(struct plane *p, struct export *ex) {
    struct taking *t = &p->taking;
    if (t->number)
        return t->number == ex->number && !t->told;
    return begin_locked(p, ex);
}

/* Nanoseconds after which Python is to be told of those who wait; 0 when nobody does, or it was told just now. */
int64_t prepared_patience_locked(struct plane *p) {
    struct taking *t = &p->taking;
    if (!t->number || t->told || t->landed)
        return 0;
    int64_t left = t->since_ns + SLOW_NS - monotonic_ns();
    if (left > 0)
        return left;
    t->told = true;
    park_settle_locked(p, false);
    return 0;
}

/* Whether it has to be taken, and may: the content is another than that of the latest one, and there is room. */
static int check(const fsd_preparation *by, int source, int directory) {
    struct btrfs_ioctl_get_subvol_info_args info;
    struct statvfs space;
    if (ioctl(source, BTRFS_IOC_GET_SUBVOL_INFO, &info) < 0) /* it may be 1, which means nothing */
        return -errno;
    if (info.ctransid == by->generation)
        return -EALREADY;
    if (fstatvfs(directory, &space))
        return -errno;
    return space.f_blocks && (double)space.f_bavail < by->needed * (double)space.f_blocks ? -ENOSPC : 0;
}

/* Copy the subvolume to the first free name of this second; it is on the disk at return. */
static int snapshot(int source, int holder, char *name) {
    struct btrfs_ioctl_vol_args_v2 args = {.fd = source, .flags = BTRFS_SUBVOL_RDONLY};
    char stamp[32];
    struct tm utc;
    time_t now = time(NULL);
    strftime(stamp, sizeof stamp, STAMP, gmtime_r(&now, &utc));
    int error = -EEXIST;
    for (int n = 0; error == -EEXIST && n < NAMES_MAX; n++) {
        snprintf(name, LONGEST_NAME + 1, n ? "%s_%d" : "%s", stamp, n);
        memcpy(args.name, name, strlen(name) + 1);
        error = ioctl(holder, BTRFS_IOC_SNAP_CREATE_V2, &args) ? -errno : 0;
    }
    return error;
}

static int take_it(const struct taking *t, fsd_taken *taken) {
    int directory = atomic_load(&t->directory);
    int error = check(&t->by, t->source, directory);
    if (!error && mkdirat(directory, t->by.holder, 0700) && errno != EEXIST)
        error = -errno;
    if (error)
        return error;
    int holder = openat(directory, t->by.holder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (holder < 0)
        return -errno;
    error = snapshot(t->source, holder, taken->name);
    close(holder);
    memcpy(taken->holder, t->by.holder, sizeof taken->holder);
    taken->when_ns = epoch_ns();
    return error;
}

/* Tell the event loop what was taken last, if it does not know. Comes before what is parked afterwards. */
void prepared_tell_locked(struct plane *p) {
    struct taking *t = &p->taking;
    if (t->news.kind)
        event_push_locked(p, &t->news);
    t->news.kind = 0;
}

/* From now on whoever lists snapshots finds it, or waits until it is written down. */
static void keep_locked(struct plane *p, struct taken *item) {
    struct taking *t = &p->taking;
    struct taken **end = &t->taken;
    while (*end)
        end = &(*end)->next;
    *end = item;
    atomic_fetch_add(&t->unwritten, 1);
    atomic_fetch_add(&t->count, 1);
    t->news = (fsd_event){.kind = FSD_TAKEN, .number = t->number, .names = 2};
    memcpy(t->news.name[0], item->is.holder, sizeof t->news.name[0]);
    memcpy(t->news.name[1], item->is.name, sizeof t->news.name[1]);
}

/* The copy is there: mutations may pass until the burst is over. What was listed before is not so any more. */
static void open_window(struct plane *p) {
    struct taking *t = &p->taking;
    pthread_mutex_unlock(&p->park_lock);
    fsd_outdate(p);
    fsd_disarm(p, t->number, t->by.quiet_ns, epoch_ns() + t->by.longest_ns);
    pthread_mutex_lock(&p->park_lock);
}

static void take_locked(struct plane *p) {
    struct taking *t = &p->taking;
    struct taken *item = calloc(1, sizeof *item);
    pthread_mutex_unlock(&p->park_lock);
    int error = item ? take_it(t, &item->is) : -ENOMEM;
    close(t->source);
    pthread_mutex_lock(&p->park_lock);
    if (error)
        free(item);
    else
        keep_locked(p, item);
    t->landed = !t->told;
    if (t->landed && !error)
        open_window(p);
    if (t->landed)
        park_settle_locked(p, !error);
    t->number = 0;
    pthread_cond_broadcast(&t->done);
}

/* Sleep until there is something to take; what was taken is told after a moment. */
static void rest_locked(struct plane *p) {
    struct taking *t = &p->taking;
    if (!t->news.kind) {
        pthread_cond_wait(&t->wake, &p->park_lock);
        return;
    }
    struct timespec until = after_ns(COURTESY_NS);
    if (pthread_cond_timedwait(&t->wake, &p->park_lock, &until) && t->news.kind) {
        prepared_tell_locked(p);
        signal_python(p);
    }
}

/* The thread that takes what was laid ready. */
void *taker_main(void *argument) {
    struct plane *p = argument;
    pthread_mutex_lock(&p->park_lock);
    while (!p->stopping) {
        if (!p->taking.number) {
            rest_locked(p);
            continue;
        }
        prepared_tell_locked(p);
        take_locked(p);
    }
    pthread_cond_broadcast(&p->taking.done);
    pthread_mutex_unlock(&p->park_lock);
    return NULL;
}

/* How many were taken and are not written down yet. */
int fsd_unwritten(plane *p) {
    return atomic_load(&p->taking.unwritten);
}

/* The oldest of them; 0 when there is none. */
int fsd_first_taken(plane *p, fsd_taken *taken) {
    pthread_mutex_lock(&p->park_lock);
    struct taken *item = p->taking.taken;
    if (item)
        *taken = item->is;
    pthread_mutex_unlock(&p->park_lock);
    return item != NULL;
}

/* The oldest of them is written down. */
void fsd_written(plane *p) {
    pthread_mutex_lock(&p->park_lock);
    struct taken *item = p->taking.taken;
    if (item) {
        p->taking.taken = item->next;
        atomic_fetch_sub(&p->taking.unwritten, 1);
    }
    pthread_mutex_unlock(&p->park_lock);
    free(item);
}

/* Wait while a snapshot is being taken in the directory of that name; in any, if it is empty. */
void fsd_await_taking(plane *p, const char *holder) {
    struct taking *t = &p->taking;
    pthread_mutex_lock(&p->park_lock);
    while (t->number && (!*holder || !strcmp(t->by.holder, holder)) && !p->stopping)
        pthread_cond_wait(&t->done, &p->park_lock);
    pthread_mutex_unlock(&p->park_lock);
}

void prepared_init(struct plane *p) {
    pthread_cond_init(&p->taking.wake, NULL);
    pthread_cond_init(&p->taking.done, NULL);
    p->taking.directory = -1;
}

void prepared_free(struct plane *p) {
    for (struct taken *item = p->taking.taken, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    if (p->taking.directory >= 0)
        close(p->taking.directory);
    pthread_cond_destroy(&p->taking.done);
    pthread_cond_destroy(&p->taking.wake);
}
