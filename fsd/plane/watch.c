/* Which filesystems tell of changes made elsewhere: fanotify(7), one group for each filesystem that holds a tree
   which others change. The trees are found by the subvolume that an event names. */
#include "plane.h"
#include "watch.h"

#include <linux/btrfs.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

#define EPOCH_MINOR 44 /* without FUSE_NOTIFY_INC_EPOCH nothing helps when events are lost */
#define KEY_SIZE 16
#define EVENTS                                                                                                    \
    (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_ATTRIB | FAN_MODIFY | FAN_CLOSE_WRITE |          \
     FAN_DELETE_SELF | FAN_MOVE_SELF | FAN_ONDIR)
#define REPORT (FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME | FAN_REPORT_FID | FAN_REPORT_TID)
#define PAUSE_NS 1000000 /* between looking for events: a writer does not wake us for each of his files */
#define RETRY_MS 5
#define FSCONFIG_SET_STRING 1
#define FSCONFIG_CMD_CREATE 6

/* A filesystem whose changes are told. */
struct watch {
    struct watch *next;
    int group;
    bool by_subvolume;
    unsigned trees;
    unsigned char key[KEY_SIZE];
};

/* -- marks ----------------------------------------------------------------------------------------- */

static int source_of(int directory, struct btrfs_ioctl_dev_info_args *device, unsigned char key[KEY_SIZE]) {
    struct btrfs_ioctl_fs_info_args info = {0};
    if (ioctl(directory, BTRFS_IOC_FS_INFO, &info))
        return -errno;
    memcpy(key, info.fsid, KEY_SIZE);
    for (uint64_t id = 1; id <= info.max_id; id++) {
        *device = (struct btrfs_ioctl_dev_info_args){.devid = id};
        if (!ioctl(directory, BTRFS_IOC_DEV_INFO, device) && device->path[0])
            return 0;
    }
    return -ENODEV;
}

/* The top of a btrfs filesystem, in a mount nobody else sees: the kernel marks a whole filesystem by its top
   only, because subvolumes have IDs of their own. */
static int open_top(int directory) {
    struct btrfs_ioctl_dev_info_args device;
    unsigned char key[KEY_SIZE];
    int error = source_of(directory, &device, key);
    int context = error ? error : (int)syscall(SYS_fsopen, "btrfs", 1 /* FSOPEN_CLOEXEC */);
    if (context < 0)
        return error ? error : -errno;
    int top = -1;
    if (!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", (char *)device.path, 0) &&
        !syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "subvolid", "5", 0) &&
        !syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
        top = (int)syscall(SYS_fsmount, context, 1 /* FSMOUNT_CLOEXEC */, 0);
    error = -errno;
    close(context);
    return top < 0 ? error : top;
}

/* A group that is told of all changes in the filesystem of an open directory, or a negated errno. */
static int marked_group(int directory, bool btrfs) {
    int top = btrfs ? open_top(directory) : fcntl(directory, F_DUPFD_CLOEXEC, 3);
    int group = top < 0 ? top : fanotify_init(REPORT, O_RDONLY | O_CLOEXEC);
    if (top >= 0 && group < 0)
        group = -errno;
    if (group >= 0 && fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, EVENTS, top, ".")) {
        int error = -errno;
        close(group);
        group = error;
    }
    if (top >= 0)
        close(top); /* the mark keeps nothing from being unmounted */
    return group;
}

/* What tells one filesystem from another. */
static int key_of(const struct tree *tree, unsigned char key[KEY_SIZE]) {
    struct btrfs_ioctl_dev_info_args device;
    memset(key, 0, KEY_SIZE);
    if (tree->kind == BY_BTRFS_HANDLE)
        return source_of(tree->export->mount, &device, key);
    memcpy(key, &tree->device, sizeof tree->device);
    return 0;
}

/* -- trees ----------------------------------------------------------------------------------------- */

static struct tree **row_of(struct watches *all, uint64_t subvolume) {
    return &all->rows[(subvolume * 0x9E3779B97F4A7C15ULL >> 32) % ROWS];
}

static struct watch *find(struct watches *all, const unsigned char key[KEY_SIZE]) {
    struct watch *watch = all->first;
    while (watch && (!watch->trees || memcmp(watch->key, key, KEY_SIZE)))
        watch = watch->next; /* one without trees is about to be given up, and may have lost its mark */
    return watch;
}

static bool wake_thread(struct watches *all) {
    uint64_t one = 1;
    return write(all->wake, &one, sizeof one) == sizeof one;
}

static struct watch *begin(struct watches *all, const struct tree *tree, const unsigned char key[KEY_SIZE]) {
    struct watch *watch = calloc(1, sizeof *watch);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};
    if (!watch)
        return NULL;
    watch->by_subvolume = tree->kind == BY_BTRFS_HANDLE;
    watch->group = marked_group(tree->export->mount, watch->by_subvolume);
    memcpy(watch->key, key, KEY_SIZE);
    if (watch->group < 0 || epoll_ctl(all->epoll, EPOLL_CTL_ADD, watch->group, &event)) {
        if (watch->group >= 0)
            close(watch->group);
        free(watch);
        return NULL;
    }
    watch->next = all->first;
    all->first = watch;
    wake_thread(all); /* it looks at the clock from now on */
    return watch;
}

static bool can_be_watched(const struct plane *p, const struct tree *tree) {
    uint64_t inode, subvolume;
    struct statx info;
    return p->kernel_minor >= EPOCH_MINOR && tree->export->cloned && tree->kind != BY_NAME &&
           !(tree->export->flags & FSD_FROZEN) && change_object(&tree->root, &inode, &subvolume) &&
           (tree->kind == BY_BTRFS_HANDLE || (!stat_fd(tree->export->mount, &info) && info.stx_ino == inode));
}

/* From now on changes made elsewhere in this tree are told, if the filesystem does that; the kernel may then
   keep what it is answered. */
void tree_watch(struct plane *p, struct tree *tree) {
    struct watches *all = p->watches;
    unsigned char key[KEY_SIZE];
    if (!can_be_watched(p, tree) || key_of(tree, key))
        return;
    pthread_mutex_lock(&all->lock);
    if (!tree->watch) {
        struct watch *watch = find(all, key);
        if (!watch)
            watch = begin(all, tree, key);
        if (watch) {
            struct tree **row = row_of(all, tree->kind == BY_BTRFS_HANDLE ? tree->subvolume : 0);
            tree->watch = watch;
            tree->watched = *row;
            *row = tree;
            watch->trees++;
            atomic_store(&tree->told, true);
            atomic_store(&tree->rests, false);
        }
    }
    pthread_mutex_unlock(&all->lock);
}

static void take_out(struct watches *all, struct tree *tree) {
    for (struct tree **row = all->rows; row < all->rows + ROWS; row++)
        for (struct tree **at = row; *at; at = &(*at)->watched)
            if (*at == tree) {
                *at = tree->watched;
                return;
            }
}

/* A tree that goes away. */
void tree_unwatch(struct plane *p, struct tree *tree) {
    struct watches *all = p->watches;
    pthread_mutex_lock(&all->lock);
    if (tree->watch) {
        take_out(all, tree);
        tree->watch->trees--;
        tree->watch = NULL;
        atomic_store(&tree->told, false);
    }
    atomic_store(&tree->rests, false);
    pthread_mutex_unlock(&all->lock);
}

/* Whether the kernel may keep what it is answered about a tree, because it is told of changes. Whoever asks wants
   that. */
bool tree_is_told(const struct plane *p, const struct tree *tree) {
    struct watches *all = p->watches;
    if (atomic_load(&tree->told)) {
        if (!atomic_load_explicit(&all->looked_at, memory_order_relaxed))
            atomic_store(&all->looked_at, true);
        return true;
    }
    if (atomic_load(&tree->rests) && !atomic_exchange(&all->wanted, true) && !wake_thread(all))
        atomic_store(&all->wanted, false);
    return false;
}

/* How many filesystems tell of changes now. */
uint32_t watches_count(struct plane *p) {
    uint32_t count = 0;
    pthread_mutex_lock(&p->watches->lock);
    for (const struct watch *watch = p->watches->first; watch; watch = watch->next)
        count += watch->trees > 0;
    pthread_mutex_unlock(&p->watches->lock);
    return count;
}

/* The node ids an object of a filesystem can have, one for each tree that shows it, at most `room`; how many. */
uint32_t watched_ids(struct plane *p, const struct watch *watch, const struct handle *object, uint64_t *ids,
                     uint32_t room) {
    struct watches *all = p->watches;
    uint64_t inode, subvolume;
    uint32_t found = 0;
    if (!change_object(object, &inode, &subvolume))
        return 0;
    if (!watch->by_subvolume)
        subvolume = 0;
    pthread_mutex_lock(&all->lock);
    for (const struct tree *tree = *row_of(all, subvolume); tree && found < room; tree = tree->watched)
        if (tree->watch == watch && (!watch->by_subvolume || tree->subvolume == subvolume))
            ids[found++] = tree_id(tree, inode);
    pthread_mutex_unlock(&all->lock);
    return found;
}

/* -- the thread ------------------------------------------------------------------------------------ */

/* Give up groups no tree is left of; only the thread that reads them does. Whether any is left. */
static bool sweep(struct watches *all) {
    pthread_mutex_lock(&all->lock);
    for (struct watch **at = &all->first, *watch; (watch = *at);) {
        if (watch->trees) {
            at = &watch->next;
            continue;
        }
        *at = watch->next;
        close(watch->group);
        free(watch);
    }
    bool left = all->first;
    pthread_mutex_unlock(&all->lock);
    return left;
}

static void rest_row(struct tree **row) {
    for (struct tree *tree = *row, *next; tree; tree = next) {
        next = tree->watched;
        tree->watch->trees--;
        tree->watch = NULL;
        atomic_store(&tree->rests, true);
        atomic_store(&tree->told, false);
    }
    *row = NULL;
}

static int64_t now_s(void) {
    return monotonic_ns() / 1000000000;
}

/* When nobody asked for a while, follow no changes any more: whoever makes them pays for it. */
static void rest_if_idle(struct plane *p) {
    struct watches *all = p->watches;
    if (atomic_exchange(&all->looked_at, false))
        all->asked_s = now_s();
    if (now_s() - all->asked_s < p->idle)
        return;
    pthread_mutex_lock(&all->lock);
    for (struct tree **row = all->rows; row < all->rows + ROWS; row++)
        rest_row(row);
    pthread_mutex_unlock(&all->lock);
    changes_forget_all(p);
}

static void resume(struct plane *p) {
    struct watches *all = p->watches;
    uint64_t count;
    if (read(all->wake, &count, sizeof count) < 0)
        return;
    all->asked_s = now_s();
    pthread_rwlock_rdlock(&p->exports_lock);
    for (struct export *ex = p->exports; ex; ex = ex->next)
        for (struct tree *tree = ex->trees; tree; tree = tree->next)
            if (atomic_exchange(&tree->rests, false) && !atomic_load(&ex->gone))
                tree_watch(p, tree);
    pthread_rwlock_unlock(&p->exports_lock);
    atomic_store(&all->wanted, false);
}

static void serve(struct plane *p, struct watch *watch) {
    if (watch)
        changes_take(p, watch, watch->group);
    else
        resume(p);
}

static void pause_a_little(void) {
    struct timespec time = {.tv_nsec = PAUSE_NS};
    nanosleep(&time, NULL);
}

static void *watch_main(void *argument) {
    struct plane *p = argument;
    struct watches *all = p->watches;
    struct epoll_event ready[8];
    int timeout = -1;
    while (!p->stopping) {
        int count = epoll_wait(all->epoll, ready, 8, timeout);
        for (int i = 0; i < count && !p->stopping; i++)
            serve(p, ready[i].data.ptr);
        bool soon = changes_retry(p);
        soon |= notify_names_stuck(p);
        if (sweep(all))
            rest_if_idle(p);
        timeout = soon ? RETRY_MS : sweep(all) ? p->idle * 500 : -1;
        if (count > 0)
            pause_a_little();
    }
    return NULL;
}

int watches_start(struct plane *p) {
    struct watches *all = p->watches = calloc(1, sizeof *all);
    struct epoll_event event = {.events = EPOLLIN};
    if (!all)
        return -ENOMEM;
    pthread_mutex_init(&all->lock, NULL);
    all->epoll = epoll_create1(EPOLL_CLOEXEC);
    all->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (all->epoll < 0 || all->wake < 0 || epoll_ctl(all->epoll, EPOLL_CTL_ADD, p->stop_fd, &event) ||
        epoll_ctl(all->epoll, EPOLL_CTL_ADD, all->wake, &event))
        return -errno;
    int error = thread_start(&p->watcher, watch_main, p);
    p->watcher_started = !error;
    return error;
}

/* After stop_fd has become readable. */
void watches_stop(struct plane *p) {
    if (p->watcher_started)
        pthread_join(p->watcher, NULL);
    p->watcher_started = false;
}

void watches_free(struct plane *p) {
    struct watches *all = p->watches;
    if (!all)
        return;
    sweep(all);
    if (all->epoll >= 0)
        close(all->epoll);
    if (all->wake >= 0)
        close(all->wake);
    pthread_mutex_destroy(&all->lock);
    free(all);
}
