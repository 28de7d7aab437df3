/* Between the two files that follow changes made elsewhere. */
#ifndef FSD_PLANE_WATCH_H
#define FSD_PLANE_WATCH_H

#include "plane.h"

#define RETRIES_MAX 1024
#define EVENTS_SIZE 65536
#define ROWS 256

struct watch;

/* Nodes the kernel has to be told of again. */
struct retries {
    unsigned count;
    struct retry {
        uint64_t id;
        int times;
    } items[RETRIES_MAX];
};

struct watches {
    pthread_mutex_t lock; /* taken after exports_lock; no other is taken under it */
    struct watch *first;
    struct tree *rows[ROWS];
    int epoll, wake;
    atomic_bool looked_at; /* somebody asked about a tree that is watched */
    atomic_bool wanted;    /* or about one that is not, for nobody had asked for long */
    bool again;            /* everything has to be forgotten once more */
    int64_t asked_s;       /* when somebody last asked */
    struct retries retries; /* this and the next are of the thread that reads events */
    _Alignas(8) unsigned char events[EVENTS_SIZE];
};

/* watch.c */
uint32_t watched_ids(struct plane *p, const struct watch *watch, const struct handle *object, uint64_t *ids,
                     uint32_t room);

/* changes.c */
bool change_object(const struct handle *handle, uint64_t *inode, uint64_t *subvolume);
void changes_take(struct plane *p, const struct watch *watch, int group);
bool changes_retry(struct plane *p);
void changes_forget_all(struct plane *p);

#endif
