/* Shared by _archive_unpack.c and _archive_parse.c. */
#ifndef FSD_ARCHIVE_UNPACK_H
#define FSD_ARCHIVE_UNPACK_H

#include "_archive.h"

#include <sys/types.h>
#include <time.h>

#define PATH_SIZE 4096
#define NAME_SIZE 255
#define CACHE 16
#define OWNERS_MAX 65536

struct buffer {
    char *data;
    size_t size, capacity;
};

struct cached {
    char path[PATH_SIZE];
    size_t size;
    int fd;
    gid_t gid; /* group of a file made in it */
    uint64_t used;
};

struct owners {
    uint32_t *ids; /* ascending */
    size_t count, capacity, last;
};

struct noted {
    int64_t sec;
    int32_t nsec;
    uint32_t size; /* of the path that follows, with its NUL */
};

struct fsd_unpack {
    int root, record, leave_new_directories;
    fsd_seen *seen;
    uid_t euid;
    gid_t egid;
    fsd_range *ranges[2];
    size_t range_count[2];
    struct owners owners[2];
    struct buffer lines, raw, times;
    struct cached cache[CACHE];
    uint64_t clock;
};

/* One parsed entry. `type` is '0', '1', '2' or '5'; `path` is clean and not empty. */
struct entry {
    char type;
    char name[PATH_SIZE], link[PATH_SIZE], path[PATH_SIZE];
    const char *base; /* last component, inside path */
    size_t name_size, path_size;
    uint32_t mode, uid, gid, host_uid, host_gid;
    uint64_t size;
    struct timespec times[2];
    const uint8_t *content;
    size_t headers, taken; /* bytes of all header blocks; of padding before, headers and content */
    size_t wanted;         /* FSD_MORE: bytes needed from the start */
};

/* Append to a buffer; 0, or -1 when out of memory. */
int fsd_put(struct buffer *b, const void *data, size_t size);

/* Parse the entry after `pad` bytes. 0, FSD_MORE or FSD_OTHER. */
int fsd_parse(const uint8_t *data, size_t size, size_t pad, struct entry *e);

/* Append the entry's tar-split lines. -1: its name is the caller's to encode, or out of memory. */
int fsd_record(fsd_unpack *x, const uint8_t *data, size_t pad, const struct entry *e, uint64_t *position);

/* Descriptor of a directory, kept by `x`; -1 if it cannot be had without following a link. */
int fsd_directory(fsd_unpack *x, const char *path, size_t size);

/* A path without empty and `.` components; -1 if it is absolute, has `..`, or cannot be a path. */
int fsd_clean(const char *name, size_t size, char *out, size_t *out_size);

#endif
