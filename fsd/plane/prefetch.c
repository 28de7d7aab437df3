/* Read the attributes of a directory's entries before they are asked for: a program that opened a
   directory is going to list it, and most of the time a cold listing takes is spent on inodes. */
#include "plane.h"

#include <signal.h>
#include <sys/syscall.h>

#define RAW_SIZE 32768

struct raw_entry {
    uint64_t inode;
    int64_t next;
    unsigned short length;
    unsigned char type;
    char name[];
};

void prefetch_add(struct plane *p, uint64_t id) {
    if (!p->prefetcher_count)
        return;
    pthread_mutex_lock(&p->prefetch_lock);
    p->prefetch[p->prefetch_head++ % PREFETCH_MAX] = id;
    if (p->prefetch_head - p->prefetch_tail > PREFETCH_MAX)
        p->prefetch_tail = p->prefetch_head - PREFETCH_MAX;
    pthread_cond_signal(&p->prefetch_wake);
    pthread_mutex_unlock(&p->prefetch_lock);
}

static void touch(int directory, const unsigned char *raw, long length) {
    struct statx info;
    for (long at = 0; at < length;) {
        const struct raw_entry *entry = (const struct raw_entry *)(raw + at);
        statx(directory, entry->name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &info);
        at += entry->length;
    }
}

static void prefetch(struct plane *p, struct node *node, unsigned char *raw) {
    int fd = node_open(p, node, O_RDONLY | O_DIRECTORY);
    long got;
    if (fd < 0)
        return;
    while (!p->stopping && (got = syscall(SYS_getdents64, fd, raw, RAW_SIZE)) > 0)
        touch(fd, raw, got);
    close(fd);
}

static uint64_t next(struct plane *p) {
    uint64_t id = 0;
    pthread_mutex_lock(&p->prefetch_lock);
    while (!p->stopping && p->prefetch_head == p->prefetch_tail)
        pthread_cond_wait(&p->prefetch_wake, &p->prefetch_lock);
    if (!p->stopping)
        id = p->prefetch[--p->prefetch_head % PREFETCH_MAX]; /* the newest is needed soonest */
    pthread_mutex_unlock(&p->prefetch_lock);
    return id;
}

static void *prefetch_main(void *argument) {
    struct plane *p = argument;
    unsigned char *raw = malloc(RAW_SIZE);
    uint64_t id;
    while (raw && (id = next(p))) {
        struct node *node = node_find(p, id);
        if (!node)
            continue;
        prefetch(p, node, raw);
        node_put(p, node);
    }
    free(raw);
    return NULL;
}

int prefetch_start(struct plane *p, int count) {
    sigset_t all, before;
    pthread_mutex_init(&p->prefetch_lock, NULL);
    pthread_cond_init(&p->prefetch_wake, NULL);
    p->prefetchers = calloc((size_t)count + 1, sizeof *p->prefetchers);
    if (!p->prefetchers)
        return -ENOMEM;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < count; i++)
        p->prefetcher_count += !pthread_create(&p->prefetchers[p->prefetcher_count], NULL, prefetch_main, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return 0;
}

void prefetch_stop(struct plane *p) {
    pthread_mutex_lock(&p->prefetch_lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->prefetch_wake);
    pthread_mutex_unlock(&p->prefetch_lock);
    for (int i = 0; i < p->prefetcher_count; i++)
        pthread_join(p->prefetchers[i], NULL);
    free(p->prefetchers);
    pthread_cond_destroy(&p->prefetch_wake);
    pthread_mutex_destroy(&p->prefetch_lock);
}
