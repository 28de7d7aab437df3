/* The loop over plain entries: parse, create, record.
 *
 * "Plain" is a regular file, directory, symbolic or hard link with an ordinary name, in a USTAR, GNU or
 * V7 header, possibly after a pax header with common keys or a GNU long name. The loop is conservative:
 * whenever a field is odd or a system call fails it undoes the entry and stops, and the caller, who
 * knows every rule and every error text, takes the entry from its first byte. So nothing here decides
 * policy, and nothing here reports errors.
 */
#define _GNU_SOURCE
#include "_archive_unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

fsd_unpack *fsd_unpack_new(int root, fsd_seen *seen, int record)
{
    fsd_unpack *x = calloc(1, sizeof *x);

    if (!x)
        return NULL;
    x->root = root;
    x->seen = seen;
    x->record = record;
    x->euid = geteuid();
    x->egid = getegid();
    for (int i = 0; i < CACHE; i++)
        x->cache[i].fd = -1;
    return x;
}

void fsd_unpack_leave_new_directories(fsd_unpack *x) { x->leave_new_directories = 1; }

void fsd_unpack_forget(fsd_unpack *x)
{
    for (int i = 0; i < CACHE; i++) {
        if (x->cache[i].fd >= 0)
            close(x->cache[i].fd);
        x->cache[i].fd = -1;
    }
}

void fsd_unpack_free(fsd_unpack *x)
{
    if (!x)
        return;
    fsd_unpack_forget(x);
    free(x->ranges[0]);
    free(x->ranges[1]);
    free(x->owners[0].ids);
    free(x->owners[1].ids);
    free(x->lines.data);
    free(x->raw.data);
    free(x->times.data);
    free(x);
}

static int copy_ranges(fsd_unpack *x, int which, const fsd_range *from, size_t count)
{
    if (!count)
        return 0;
    x->ranges[which] = malloc(count * sizeof *from);
    if (!x->ranges[which])
        return -1;
    memcpy(x->ranges[which], from, count * sizeof *from);
    x->range_count[which] = count;
    return 0;
}

int fsd_unpack_map(fsd_unpack *x, const fsd_range *uids, size_t nuids, const fsd_range *gids, size_t ngids)
{
    return copy_ranges(x, 0, uids, nuids) < 0 || copy_ranges(x, 1, gids, ngids) < 0 ? -1 : 0;
}

/* -- owners --------------------------------------------------------------------------------- */

static int to_host(const fsd_unpack *x, int which, uint32_t id, uint32_t *host)
{
    if (!x->range_count[which]) {
        *host = id;
        return id != UINT32_MAX;
    }
    for (size_t i = 0; i < x->range_count[which]; i++) {
        const fsd_range *r = &x->ranges[which][i];

        if (id >= r->container && id - r->container < r->size) {
            *host = r->host + (id - r->container);
            return *host != UINT32_MAX;
        }
    }
    return 0;
}

static int add_owner(struct owners *o, uint32_t id)
{
    size_t low = 0, high = o->count;

    if (o->count && o->ids[o->last] == id)
        return 0;
    while (low < high) {
        size_t mid = (low + high) / 2;

        if (o->ids[mid] < id)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == o->count || o->ids[low] != id) {
        if (o->count >= OWNERS_MAX)
            return -1;
        if (o->count == o->capacity) {
            size_t capacity = o->capacity ? 2 * o->capacity : 64;
            uint32_t *ids = realloc(o->ids, capacity * sizeof *ids);

            if (!ids)
                return -1;
            o->ids = ids;
            o->capacity = capacity;
        }
        memmove(o->ids + low + 1, o->ids + low, (o->count - low) * sizeof *o->ids);
        o->ids[low] = id;
        o->count++;
    }
    o->last = low;
    return 0;
}

size_t fsd_unpack_owners(const fsd_unpack *x, int groups, uint32_t *out, size_t max)
{
    const struct owners *o = &x->owners[!!groups];

    for (size_t i = 0; i < o->count && i < max; i++)
        out[i] = o->ids[i];
    return o->count;
}

/* -- directories ------------------------------------------------------------------------------ */

static int open_directory(int root, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };

    return (int)syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
}

/* Every directory above an entry is marked, so that an opaque whiteout spares what came before it. */
static int mark_above(fsd_unpack *x, const char *path, size_t size)
{
    while (x->seen && size) {
        int added = fsd_seen_add(x->seen, FSD_PARENT, (const uint8_t *)path, size);

        if (added <= 0)
            return added;
        while (size && path[size - 1] != '/')
            size--;
        while (size && path[size - 1] == '/')
            size--;
    }
    return 0;
}

/* Descriptor of the directory that `path[0..size)` names, from the cache; NULL if it cannot be had. */
static struct cached *directory(fsd_unpack *x, const char *path, size_t size)
{
    struct cached *slot = &x->cache[0];
    struct stat st;

    for (int i = 0; i < CACHE; i++) {
        struct cached *c = &x->cache[i];

        if (c->fd >= 0 && c->size == size && !memcmp(c->path, path, size)) {
            c->used = ++x->clock;
            return c;
        }
        if (c->fd < 0 || (slot->fd >= 0 && c->used < slot->used))
            slot = c;
    }
    if (slot->fd >= 0)
        close(slot->fd);
    slot->fd = -1;
    memcpy(slot->path, path, size);
    slot->path[size] = 0;
    slot->size = size;
    slot->fd = open_directory(x->root, slot->path);
    if (slot->fd < 0)
        return NULL;
    if (fstat(slot->fd, &st) < 0 || mark_above(x, path, size) < 0) {
        close(slot->fd);
        slot->fd = -1;
        return NULL;
    }
    slot->gid = st.st_mode & S_ISGID ? st.st_gid : x->egid;
    slot->used = ++x->clock;
    return slot;
}

int fsd_directory(fsd_unpack *x, const char *path, size_t size)
{
    struct cached *c = directory(x, path, size);

    return c ? c->fd : -1;
}

static void forget_path(fsd_unpack *x, const char *path, size_t size)
{
    for (int i = 0; i < CACHE; i++)
        if (x->cache[i].fd >= 0 && x->cache[i].size == size && !memcmp(x->cache[i].path, path, size)) {
            close(x->cache[i].fd);
            x->cache[i].fd = -1;
        }
}

/* -- times of directories ------------------------------------------------------------------------ */

int fsd_unpack_add_time(fsd_unpack *x, const char *path, int64_t sec, int32_t nsec)
{
    struct noted note = {.sec = sec, .nsec = nsec, .size = (uint32_t)strlen(path) + 1};

    if (fsd_put(&x->times, &note, sizeof note) < 0)
        return -1;
    if (fsd_put(&x->times, path, note.size) < 0) {
        x->times.size -= sizeof note;
        return -1;
    }
    return 0;
}

int fsd_unpack_set_times(fsd_unpack *x)
{
    struct noted note;
    int rc = 0;

    for (size_t at = 0; at < x->times.size && !rc; at += sizeof note + note.size) {
        int fd;

        memcpy(&note, x->times.data + at, sizeof note);
        fd = open_directory(x->root, x->times.data + at + sizeof note);
        if (fd < 0) {
            if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
                rc = -errno;
            continue;
        }
        struct timespec times[2] = {{note.sec, note.nsec}, {note.sec, note.nsec}};
        if (futimens(fd, times) < 0)
            rc = -errno;
        close(fd);
    }
    return rc;
}

/* -- creating ------------------------------------------------------------------------------------ */

static int write_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t done = write(fd, data, size);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

static int make_file(fsd_unpack *x, struct cached *dir, const struct entry *e)
{
    int fd = openat(dir->fd, e->base, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (fd < 0)
        return -1;
    if (write_all(fd, e->content, e->size) < 0 ||
        ((e->host_uid != x->euid || e->host_gid != dir->gid) && fchown(fd, e->host_uid, e->host_gid) < 0) ||
        fchmod(fd, e->mode) < 0 || futimens(fd, e->times) < 0) {
        close(fd);
        unlinkat(dir->fd, e->base, 0);
        return -1;
    }
    return close(fd);
}

static int make_directory(fsd_unpack *x, struct cached *dir, const struct entry *e)
{
    int made, fd, rc;

    if (x->leave_new_directories && faccessat(dir->fd, e->base, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    made = mkdirat(dir->fd, e->base, 0700);
    if (made < 0 && errno != EEXIST)
        return -1;
    /* Fails on anything but a directory, a symbolic link included: not ours to replace. */
    fd = openat(dir->fd, e->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    rc = fchown(fd, e->host_uid, e->host_gid);
    if (!rc)
        rc = fchmod(fd, e->mode);
    close(fd);
    if (!rc)
        rc = fsd_unpack_add_time(x, e->path, e->times[0].tv_sec, (int32_t)e->times[0].tv_nsec);
    if (rc < 0 && !made)
        unlinkat(dir->fd, e->base, AT_REMOVEDIR);
    if (!made)
        forget_path(x, e->path, e->path_size);
    else
        fsd_unpack_forget(x);
    return rc;
}

static int make_symlink(fsd_unpack *x, struct cached *dir, const struct entry *e)
{
    if (!*e->link || symlinkat(e->link, dir->fd, e->base) < 0)
        return -1;
    if (((e->host_uid != x->euid || e->host_gid != dir->gid) &&
         fchownat(dir->fd, e->base, e->host_uid, e->host_gid, AT_SYMLINK_NOFOLLOW) < 0) ||
        utimensat(dir->fd, e->base, e->times, AT_SYMLINK_NOFOLLOW) < 0 ||
        fsd_seen_add(x->seen, FSD_LINK, (const uint8_t *)e->path, e->path_size) < 0) {
        unlinkat(dir->fd, e->base, 0);
        return -1;
    }
    return 0;
}

/* A link whose header agrees with its target; a header that changes the target is the caller's. */
static int make_hardlink(fsd_unpack *x, struct cached *dir, const struct entry *e)
{
    char clean[PATH_SIZE];
    size_t size = strlen(e->link), cut;
    struct cached *from;
    struct stat st;
    int at = dir->fd;

    if (fsd_clean(e->link, size, clean, &size) < 0 || !size)
        return -1;
    for (cut = size; cut && clean[cut - 1] != '/'; cut--)
        ;
    dir->used = ++x->clock; /* so that the target's directory does not evict it */
    from = directory(x, clean, cut ? cut - 1 : 0);
    if (!from || fstatat(from->fd, clean + cut, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (S_ISLNK(st.st_mode) || S_ISDIR(st.st_mode) || st.st_uid != e->host_uid || st.st_gid != e->host_gid ||
        (st.st_mode & 07777) != e->mode || st.st_mtim.tv_sec != e->times[0].tv_sec ||
        st.st_mtim.tv_nsec != e->times[0].tv_nsec)
        return -1;
    return linkat(from->fd, clean + cut, at, e->base, 0);
}

static int make(fsd_unpack *x, struct cached *dir, const struct entry *e)
{
    switch (e->type) {
    case '0':
        return make_file(x, dir, e);
    case '5':
        return make_directory(x, dir, e);
    case '2':
        return make_symlink(x, dir, e);
    default:
        return make_hardlink(x, dir, e);
    }
}

/* Put one parsed entry into the tree. -1: leave it to the caller, nothing has changed. */
static int place(fsd_unpack *x, struct entry *e)
{
    struct cached *dir;

    if (fsd_seen_has(x->seen, FSD_ENTRY, (const uint8_t *)e->path, e->path_size))
        return -1;
    if (!to_host(x, 0, e->uid, &e->host_uid) || !to_host(x, 1, e->gid, &e->host_gid))
        return -1;
    dir = directory(x, e->path, e->base == e->path ? 0 : (size_t)(e->base - e->path) - 1);
    if (!dir || make(x, dir, e) < 0)
        return -1;
    /* Too many owners or no memory from here on: the tree is right, the marks are not; give up whole. */
    if (add_owner(&x->owners[0], e->uid) < 0 || add_owner(&x->owners[1], e->gid) < 0 ||
        fsd_seen_add(x->seen, FSD_ENTRY, (const uint8_t *)e->path, e->path_size) < 0)
        return -1;
    return 0;
}

int fsd_unpack_run(fsd_unpack *x, const uint8_t *data, size_t size, uint64_t entries_max, fsd_progress *p)
{
    size_t at = 0;
    int rc = FSD_OTHER;

    p->entries = p->content = p->wanted = 0;
    x->lines.size = 0;
    while (p->entries < entries_max) {
        struct entry e;
        size_t line_mark = x->lines.size, pad = p->padding;

        rc = fsd_parse(data + at, size - at, pad, &e);
        if (rc == FSD_MORE)
            p->wanted = e.wanted;
        if (rc)
            break;
        rc = FSD_OTHER;
        if (x->record && fsd_record(x, data + at, pad, &e, &p->position) < 0) {
            x->lines.size = line_mark;
            break;
        }
        if (place(x, &e) < 0) {
            if (x->record)
                p->position -= 2;
            x->lines.size = line_mark;
            break;
        }
        at += e.taken;
        p->padding = (512 - e.size % 512) % 512;
        p->entries++;
        p->content += e.size;
    }
    p->consumed = at;
    p->lines = x->lines.data;
    p->lines_size = x->lines.size;
    return rc;
}
