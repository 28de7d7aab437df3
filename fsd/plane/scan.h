/* Reading a btrfs tree in bulk: windows of its items, in the order of their keys. */
#ifndef FSD_PLANE_SCAN_H
#define FSD_PLANE_SCAN_H

#include "plane.h"

#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>

#define WINDOW_FIRST (8u << 10) /* what is read where nothing tells that more is wanted */
#define WINDOW_MAX (256u << 10)
#define WINDOWS 16
#define PLACES_MAX (WINDOW_MAX / (sizeof(struct btrfs_ioctl_search_header) + sizeof(struct btrfs_inode_item)))

/* The keys to search: those of inodes from one to another, from a type and offset on. */
struct range {
    uint64_t first, last, offset;
    uint32_t type, last_type;
};

/* Items as the kernel found them, `length` bytes. */
struct found {
    uint32_t length;
    struct btrfs_ioctl_search_args_v2 args;
    unsigned char items[WINDOW_MAX];
};

struct item {
    struct btrfs_ioctl_search_header head;
    const unsigned char *data;
};

/* Where an inode's items begin. */
struct place {
    uint64_t inode;
    uint32_t at;
};

/* All items of the inodes from `first` to `last`; those of `partial`, the last of them, may go on. */
struct window {
    uint32_t serial; /* of the tree; 0 for nothing */
    uint32_t users, used, size, count;
    bool followed; /* what comes after it was asked for */
    uint64_t first, last, partial;
    struct place places[PLACES_MAX + 1];
    struct found found;
};

/* A tree whose data has to get to the disk before it is read. */
struct unsettled {
    struct unsettled *next;
    uint32_t number; /* of the export */
    uint64_t subvolume;
    int fd;
};

/* What the thread that reads ahead was asked for, or is reading. */
struct ahead {
    bool wanted, reading;
    uint32_t serial, size;
    uint64_t subvolume, first;
    int fd;
};

struct scan {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t thread;
    bool started;
    atomic_bool refused; /* by the kernel: without CAP_SYS_ADMIN */
    uint32_t clock;
    struct window *windows[WINDOWS];
    struct ahead ahead;
    struct unsettled *unsettled;
};

/* A tree being read, and the window used last. */
struct reading {
    struct plane *plane;
    struct tree *tree;
    uint32_t serial;
    struct window *window;
};

/* scan.c */
bool scan_begin(struct plane *p, const struct node *node, struct reading *reading);
void scan_end(struct reading *reading);
bool scan_find(struct reading *reading, uint64_t inode, uint32_t *at);
bool scan_stat(struct reading *reading, uint64_t inode, struct statx *info);

struct window *scan_room(struct scan *s);
void scan_put(struct scan *s, struct window *w, uint32_t serial);

/* ahead.c */
void ahead_settle(struct plane *p, struct tree *tree);
void ahead_want(struct scan *s, const struct tree *tree, struct window *w);
bool ahead_wait(struct scan *s, uint32_t serial, uint64_t inode, uint32_t *size);

/* search.c */
int search(int fd, uint64_t subvolume, const struct range *range, struct found *found, uint32_t size);
bool search_ended(const struct found *found, uint32_t size);
bool search_next(const struct found *found, uint32_t *at, struct item *item);
int window_read(struct window *w, int fd, uint64_t subvolume);
bool window_find(const struct window *w, uint64_t inode, uint32_t *at);

#endif
