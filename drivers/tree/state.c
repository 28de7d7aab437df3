#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <linux/fs.h>

#define CHUNK (1 << 18)
#define XATTR_MAX (1 << 16) /* XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h) */

struct link { dev_t dev; ino_t ino; char *path; };

/* A directory on the way down: its entries not yet copied, and how to know it again. */
struct frame {
    struct stat source;
    dev_t target_dev;
    ino_t target_ino;
    char *names; /* type byte, name, NUL, repeated */
    size_t size, next, path_length;
};

struct copy {
    int source, target, top; /* current directories; top of the target tree, for hard links */
    struct frame *frames;
    size_t depth, frames_size;
    char *path; /* of the current directory below the top; grows as the walk descends */
    size_t path_size;
    struct link *links;
    size_t links_used, links_size; /* a power of two */
    int clone, noatime;
    char *block; /* CHUNK bytes, also for names of extended attributes */
    const char *what;
    char name[NAME_MAX + 1];
    uint64_t files, links_made, directories, bytes;
};

static int failed(struct copy *c, const char *what)
{
    c->what = what;
    return -errno;
}

static int grow(void **memory, size_t *size, size_t needed, size_t unit)
{
    if (needed <= *size)
        return 0;
    size_t wanted = *size ? *size : 64;
    while (wanted < needed)
        wanted *= 2;
    void *bigger = realloc(*memory, wanted * unit);
    if (!bigger)
        return -ENOMEM;
    *memory = bigger;
    *size = wanted;
    return 0;
}
