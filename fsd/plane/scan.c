/* Inodes of trees nobody changes, read in bulk. A walk meets inodes nearly in the order they were made in,
   which is that of their keys, so one call finds hundreds of them where each statx(2) finds one, makes an
   inode and a name in the kernel, and is followed by the same for the mount's own. The tree tells what is on
   the disk: what was written to it has to get there first (ahead.c). */
#include "scan.h"

#include <endian.h>

#define NEAR 256 /* an inode so much after a window continues it */

/* -- windows --------------------------------------------------------------------------------------- */

static struct window *covering(struct scan *s, uint32_t serial, uint64_t inode) {
    for (int i = 0; i < WINDOWS; i++) {
        struct window *w = s->windows[i];
        if (w && w->serial == serial && w->first <= inode && inode <= w->last)
            return w;
    }
    return NULL;
}

/* As much again as the window that is continued, so that little is read in vain. */
static uint32_t size_for(const struct scan *s, uint32_t serial, uint64_t inode) {
    uint32_t size = WINDOW_FIRST;
    for (int i = 0; i < WINDOWS; i++) {
        const struct window *w = s->windows[i];
        if (w && w->serial == serial && inode > w->last && inode - w->last <= NEAR && w->size * 2 > size)
            size = w->size * 2;
    }
    return size < WINDOW_MAX ? size : WINDOW_MAX;
}

/* A window to fill, taken for the caller; NULL when all are in use. Under the lock. */
struct window *scan_room(struct scan *s) {
    int at = -1;
    for (int i = 0; i < WINDOWS; i++) {
        if (!s->windows[i] && !(s->windows[i] = calloc(1, sizeof **s->windows)))
            return NULL;
        if (!s->windows[i]->users && (at < 0 || s->windows[i]->used < s->windows[at]->used))
            at = i;
        if (at >= 0 && !s->windows[at]->used)
            break; /* never used */
    }
    if (at < 0)
        return NULL;
    s->windows[at]->users = 1;
    s->windows[at]->serial = 0;
    s->windows[at]->followed = false;
    return s->windows[at];
}

/* Give a window that was filled to whoever looks for it. Under the lock. */
void scan_put(struct scan *s, struct window *w, uint32_t serial) {
    w->serial = serial;
    w->used = ++s->clock;
}

static void let_go(struct reading *reading) {
    struct scan *s = reading->plane->scan;
    if (!reading->window)
        return;
    pthread_mutex_lock(&s->lock);
    reading->window->users--;
    pthread_mutex_unlock(&s->lock);
    reading->window = NULL;
}

static bool fill_locked(struct reading *reading, uint64_t inode, uint32_t size) {
    struct scan *s = reading->plane->scan;
    struct window *w = scan_room(s);
    if (!w)
        return false;
    w->first = inode;
    w->size = size;
    pthread_mutex_unlock(&s->lock);
    int error = window_read(w, reading->tree->export->mount, reading->tree->subvolume);
    atomic_fetch_add(&reading->plane->searches, 1);
    pthread_mutex_lock(&s->lock);
    if (error == -EPERM || error == -ENOTTY)
        atomic_store(&s->refused, true);
    scan_put(s, w, error ? 0 : reading->serial);
    if (error)
        w->users--;
    else
        reading->window = w;
    return !error;
}

/* Take the window an inode is in, reading it if need be. */
static bool take_window(struct reading *reading, uint64_t inode) {
    struct scan *s = reading->plane->scan;
    let_go(reading);
    pthread_mutex_lock(&s->lock);
    struct window *w = covering(s, reading->serial, inode);
    uint32_t size = 0;
    while (!w && ahead_wait(s, reading->serial, inode, &size))
        w = covering(s, reading->serial, inode);
    if (w) {
        w->users++;
        w->used = ++s->clock;
        reading->window = w;
    } else {
        fill_locked(reading, inode, size ? size : size_for(s, reading->serial, inode));
    }
    if (reading->window)
        ahead_want(s, reading->tree, reading->window);
    pthread_mutex_unlock(&s->lock);
    return reading->window;
}

/* -- reading --------------------------------------------------------------------------------------- */

/* Whether a directory can be read so: false also as long as its tree is not on the disk. */
bool scan_begin(struct plane *p, const struct node *node, struct reading *reading) {
    struct tree *tree = node->tree;
    const struct export *ex = tree->export;
    *reading = (struct reading){.plane = p, .tree = tree, .serial = atomic_load(&tree->serial)};
    if (tree->kind != BY_BTRFS_HANDLE || !ex->cloned || ex->mapped || !(ex->flags & (FSD_FROZEN | FSD_SEALED)) ||
        node->id & STAND_IN || atomic_load(&ex->gone) || atomic_load(&p->scan->refused))
        return false;
    if (atomic_load(&tree->settled) == UNSETTLED)
        ahead_settle(p, tree);
    return atomic_load(&tree->settled) == SETTLED;
}

void scan_end(struct reading *reading) {
    let_go(reading);
}

/* Where the items of an inode begin in reading->window. */
bool scan_find(struct reading *reading, uint64_t inode, uint32_t *at) {
    const struct window *w = reading->window;
    bool covered = w && w->first <= inode && inode <= w->last;
    return (covered || take_window(reading, inode)) && window_find(reading->window, inode, at);
}

static struct statx_timestamp time_of(const struct btrfs_timespec *time) {
    return (struct statx_timestamp){.tv_sec = (int64_t)le64toh(time->sec), .tv_nsec = le32toh(time->nsec)};
}

static uint64_t blocks_of(uint64_t bytes, uint32_t block) {
    return (bytes + block - 1) / block * block / 512; /* as btrfs_getattr rounds */
}

/* What statx(2) says of an inode; false when that has to be asked. */
bool scan_stat(struct reading *reading, uint64_t inode, struct statx *info) {
    struct btrfs_inode_item is;
    struct item item;
    uint32_t at;
    if (!scan_find(reading, inode, &at) || !search_next(&reading->window->found, &at, &item) ||
        item.head.len < sizeof is)
        return false;
    memcpy(&is, item.data, sizeof is);
    uint64_t device = le64toh(is.rdev); /* as the kernel has it in memory */
    *info = (struct statx){.stx_ino = inode,
                           .stx_mode = (uint16_t)le32toh(is.mode),
                           .stx_nlink = le32toh(is.nlink),
                           .stx_uid = le32toh(is.uid),
                           .stx_gid = le32toh(is.gid),
                           .stx_size = le64toh(is.size),
                           .stx_blksize = reading->tree->block,
                           .stx_blocks = blocks_of(le64toh(is.nbytes), reading->tree->block),
                           .stx_atime = time_of(&is.atime),
                           .stx_mtime = time_of(&is.mtime),
                           .stx_ctime = time_of(&is.ctime)};
    if (S_ISCHR(info->stx_mode) || S_ISBLK(info->stx_mode)) {
        info->stx_rdev_major = (uint32_t)(device >> 20);
        info->stx_rdev_minor = (uint32_t)device & 0xfffff;
    }
    return true;
}

/* -- beginning and end ----------------------------------------------------------------------------- */

/* Free what nobody reads just now. */
void scan_drop(struct plane *p) {
    struct scan *s = p->scan;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < WINDOWS; i++)
        if (s->windows[i] && !s->windows[i]->users) {
            free(s->windows[i]);
            s->windows[i] = NULL;
        }
    pthread_mutex_unlock(&s->lock);
}
