/* Open files. A file is either passed through, so that the kernel reads and writes the real file itself,
   or read and written by requests; one inode is never both at once. */
#include "plane.h"

#include <sys/ioctl.h>

#define SMALL (256 << 10)  /* files up to this size do better in the page cache of the mount */
#define STORED (128 << 10) /* and up to this size they get there at once when they are opened */
#define UNOPENED (-1)
#define FH_INDEX 0xffffffffULL
#define GENERATION_MASK 0x1fffffff

/* -- the table of open files --------------------------------------------------------------------- */

static uint64_t fh_of(const struct file *file, uint32_t at) {
    return OURS | (uint64_t)file->generation << 32 | at;
}

static bool grow(struct plane *p) {
    uint32_t count = p->file_count ? p->file_count * 2 : 64;
    struct file **files = realloc(p->files, count * sizeof *files);
    if (!files)
        return false;
    memset(files + p->file_count, 0, (count - p->file_count) * sizeof *files);
    p->file_hint = p->file_count;
    p->files = files;
    p->file_count = count;
    return true;
}

static int64_t free_index(struct plane *p) {
    for (uint32_t tries = 0; tries < p->file_count; tries++) {
        uint32_t at = (p->file_hint + tries) % p->file_count;
        if (!p->files[at]) {
            p->file_hint = at + 1;
            return at;
        }
    }
    return grow(p) ? (int64_t)p->file_hint++ : -1;
}

/* How many files of an export are open for writing. */
int fsd_writers(plane *p, uint32_t number) {
    int found = 0;
    pthread_mutex_lock(&p->files_lock);
    for (uint32_t at = 0; at < p->file_count; at++)
        found += p->files[at] && p->files[at]->writes && p->files[at]->node->tree->export->number == number;
    pthread_mutex_unlock(&p->files_lock);
    return found;
}

/* The handle of a new open file, which takes over the descriptor and holds the node; 0 without memory. */
static uint64_t file_add(struct plane *p, struct node *node, int fd, uint32_t flags, struct file **added) {
    struct file *file = calloc(1, sizeof *file);
    uint64_t fh = 0;
    if (!file)
        return 0;
    node_hold(node);
    *file = (struct file){.node = node, .flags = flags, .writes = (flags & O_ACCMODE) != O_RDONLY};
    atomic_fetch_add(&node->writers, file->writes);
    atomic_init(&file->fd, fd);
    atomic_init(&file->refs, 1);
    pthread_mutex_lock(&p->files_lock);
    int64_t at = free_index(p);
    if (at >= 0) {
        file->generation = ++p->file_generation & GENERATION_MASK;
        p->files[at] = file;
        fh = fh_of(file, (uint32_t)at);
    }
    pthread_mutex_unlock(&p->files_lock);
    if (!fh) {
        atomic_fetch_sub(&node->writers, file->writes);
        node_put(p, node);
        free(file);
        return 0;
    }
    atomic_fetch_add(&p->open_files, 1);
    *added = file;
    return fh;
}

static struct file *at_handle(struct plane *p, uint64_t fh) {
    uint32_t at = (uint32_t)(fh & FH_INDEX);
    struct file *file = fh & OURS && at < p->file_count ? p->files[at] : NULL;
    return file && fh_of(file, at) == fh ? file : NULL;
}

/* Open what was answered without opening it; whoever comes second closes his. */
static bool open_late(struct plane *p, struct file *file) {
    int none = UNOPENED, fd = node_open(p, file->node, O_RDONLY | O_NONBLOCK);
    if (fd >= 0 && !atomic_compare_exchange_strong(&file->fd, &none, fd))
        close(fd);
    return fd >= 0;
}

/* An open file for the length of a request; give it back with file_put. */
struct file *file_get(struct plane *p, uint64_t fh) {
    pthread_mutex_lock(&p->files_lock);
    struct file *file = at_handle(p, fh);
    if (file)
        atomic_fetch_add(&file->refs, 1);
    pthread_mutex_unlock(&p->files_lock);
    if (!file || file->fd != UNOPENED || open_late(p, file))
        return file;
    file_put(p, file);
    return NULL;
}

static void close_backing(struct plane *p, int32_t backing) {
    uint32_t id = (uint32_t)backing;
    if (!ioctl(p->device, FUSE_DEV_IOC_BACKING_CLOSE, &id))
        atomic_fetch_sub(&p->backings, 1);
}

/* Take back what an open file meant for its inode's mode. */
static void leave_mode(struct plane *p, struct file *file) {
    struct node *node = file->node;
    int32_t unused = 0;
    pthread_mutex_lock(node_lock(p, node));
    struct data_state *data = node->data;
    if (data) {
        data->cached -= file->cached;
        data->passed -= file->passed;
        if (file->passed && !data->passed) {
            unused = data->backing;
            data->backing = 0;
        }
        if (!data->passed && !data->cached) {
            free(data);
            node->data = NULL;
        }
    }
    pthread_mutex_unlock(node_lock(p, node));
    if (unused > 0)
        close_backing(p, unused);
}

void file_put(struct plane *p, struct file *file) {
    if (atomic_fetch_sub(&file->refs, 1) != 1)
        return;
    leave_mode(p, file);
    if (file->writes)
        atomic_fetch_sub(&file->node->writers, 1);
    if (file->fd != UNOPENED)
        close(file->fd);
    node_put(p, file->node);
    free(file);
    atomic_fetch_sub(&p->open_files, 1);
}

static void file_remove(struct plane *p, uint64_t fh) {
    pthread_mutex_lock(&p->files_lock);
    struct file *file = at_handle(p, fh);
    if (file) {
        p->files[fh & FH_INDEX] = NULL;
        p->file_hint = (uint32_t)(fh & FH_INDEX);
    }
    pthread_mutex_unlock(&p->files_lock);
    if (file)
        file_put(p, file);
}

void files_free(struct plane *p) {
    for (uint32_t at = 0; at < p->file_count; at++)
        if (p->files[at])
            file_put(p, p->files[at]);
    free(p->files);
    pthread_mutex_destroy(&p->files_lock);
}

/* -- modes ---------------------------------------------------------------------------------------- */

/* Whether data that was read once may be served from the cache of the mount: nobody changes it. */
static bool reads_frozen(const struct node *node, uint32_t flags) {
    return (node->tree->export->flags & (FSD_FROZEN | FSD_SEALED)) == FSD_FROZEN &&
           (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC);
}

/* Whether it may be until the file is opened again, when it is looked at: it was left alone so long that no page
   of it is dirty through a mapping, so the next write changes its times (proc_sys_vm(5), dirty_expire_centisecs
   is 30 s). What is being written goes better through the kernel's one copy of it. */
static bool reads_quiet(const struct plane *p, const struct node *node, uint32_t flags, const struct statx *info) {
    return atomic_load(&node->tree->told) && !(node->tree->export->flags & FSD_SEALED) &&
           (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC) && age_of(info) >= p->quiet;
}

static int32_t open_backing(struct request *r, int fd) {
    struct fuse_backing_map map = {.fd = fd};
    creds_fsetid(r->worker, r->in->uid == 0); /* the kernel writes with what this thread may do now */
    int id = ioctl(r->plane->device, FUSE_DEV_IOC_BACKING_OPEN, &map);
    if (id > 0)
        atomic_fetch_add(&r->plane->backings, 1);
    else if (errno == EPERM) /* privileged in a user namespace only */
        atomic_store(&r->plane->passthrough, false);
    return id;
}

static struct data_state *data_of(struct node *node) {
    if (!node->data)
        node->data = calloc(1, sizeof *node->data);
    return node->data;
}

/* Choose the mode of a new open file, the same as that of the inode's other open files. */
static void enter_mode(struct request *r, struct file *file, bool prefers_cache, struct plane_open_out *out) {
    struct node *node = file->node;
    bool may = atomic_load(&r->plane->passthrough) && !prefers_cache &&
               !(node->tree->export->flags & FSD_SEALED); /* such a file can be reopened elsewhere */
    pthread_mutex_lock(node_lock(r->plane, node));
    struct data_state *data = data_of(node);
    if (data && !data->cached && (data->passed || may)) {
        if (!data->passed)
            data->backing = open_backing(r, file->fd);
        file->passed = data->backing > 0;
        data->passed += file->passed;
    }
    if (file->passed) {
        out->open_flags |= FOPEN_PASSTHROUGH;
        out->backing_id = data->backing;
    } else if (data && !(out->open_flags & FOPEN_DIRECT_IO)) {
        file->cached = true;
        data->cached++;
    }
    pthread_mutex_unlock(node_lock(r->plane, node));
}

/* A digest of what tells changed data from unchanged. */
static uint64_t state_of(const struct statx *info) {
    uint64_t digest = info->stx_size * 0x9E3779B97F4A7C15ULL;
    digest = (digest ^ (uint64_t)info->stx_mtime.tv_sec << 30 ^ info->stx_mtime.tv_nsec) * 1099511628211ULL;
    digest = (digest ^ (uint64_t)info->stx_ctime.tv_sec << 30 ^ info->stx_ctime.tv_nsec) * 1099511628211ULL;
    return digest ? digest : 1;
}

/* Such a file cannot be read or mapped, and every write goes to its end. Without passthrough it keeps
   O_APPEND and goes past the page cache, so that appenders here and on the real path lose nothing. */
static bool appends_only(uint32_t flags) {
    return flags & O_APPEND && (flags & O_ACCMODE) == O_WRONLY;
}

/* -- small files nobody changes -------------------------------------------------------------------- */

/* Put a file's data into the kernel's cache, so that reading it asks nothing and its attributes stay known
   (the kernel drops the access time after a read it had to ask for). */
static void store(struct request *r, struct node *node, int fd, size_t size) {
    struct fuse_out_header *header = (struct fuse_out_header *)r->worker->output;
    struct fuse_notify_store_out *what = (struct fuse_notify_store_out *)(header + 1);
    ssize_t got = pread(fd, what + 1, size, 0);
    if (got != (ssize_t)size)
        return;
    *what = (struct fuse_notify_store_out){.nodeid = node->id, .size = (uint32_t)size};
    *header = (struct fuse_out_header){.len = (uint32_t)(sizeof *header + sizeof *what + size),
                                       .error = FUSE_NOTIFY_STORE};
    device_write(r->plane, header, header->len); /* after a failure it will be read by request */
}

/* The first to open a small file stores its data; whoever comes meanwhile waits for that. Storing waits
   for pages that are being read, and readers wait for us: so not while anybody else has the file open,
   and nobody learns of the file before its data is stored. */
static void store_once(struct request *r, struct file *file, size_t size) {
    struct node *node = file->node;
    pthread_mutex_lock(node_store_lock(r->plane, node));
    pthread_mutex_lock(node_lock(r->plane, node));
    bool alone = !node->settled && node->data && node->data->cached == 1;
    pthread_mutex_unlock(node_lock(r->plane, node));
    if (alone && size && size <= STORED)
        store(r, node, file->fd, size);
    node->settled = true;
    if (atomic_load(&r->plane->changes) != r->changes) /* perhaps that of this file, before it was stored */
        notify_inval_inode(r->plane, node->id);
    pthread_mutex_unlock(node_store_lock(r->plane, node));
}

/* Answer an open without opening: the kernel has the data, and asks when it lost it. */
static int open_unopened(struct request *r, struct node *node, uint32_t flags) {
    struct plane_open_out *out = (struct plane_open_out *)r->out;
    struct file *file = NULL;
    memset(out, 0, sizeof *out);
    out->fh = file_add(r->plane, node, UNOPENED, flags, &file);
    if (!out->fh)
        return -ENOMEM;
    out->open_flags = FOPEN_NOFLUSH | FOPEN_KEEP_CACHE;
    enter_mode(r, file, true, out);
    if (file->passed) /* it was opened for writing meanwhile */
        out->open_flags &= ~(uint32_t)FOPEN_KEEP_CACHE;
    return sizeof *out;
}

/* -- opening --------------------------------------------------------------------------------------- */

static void set_cache_flags(struct request *r, struct file *file, const struct statx *info,
                            struct plane_open_out *out) {
    struct node *node = file->node;
    uint64_t state = state_of(info);
    pthread_mutex_lock(node_lock(r->plane, node));
    bool known = node->seen == state || (node->settled && (file->settles || reads_frozen(node, file->flags)));
    if (file->cached && known) /* the kernel refuses it with passthrough */
        out->open_flags |= FOPEN_KEEP_CACHE;
    node->seen = state;
    pthread_mutex_unlock(node_lock(r->plane, node));
}

/* A file that others may change: what was stored of it is of no use once it did. */
static void notice(struct plane *p, struct node *node, const struct statx *info) {
    pthread_mutex_lock(node_lock(p, node));
    if (node->seen != state_of(info))
        node->settled = false;
    pthread_mutex_unlock(node_lock(p, node));
}

/* Take over the descriptor of a file just opened, and fill in the answer. */
int file_opened(struct request *r, struct node *node, int fd, uint32_t flags, const struct statx *info,
                struct plane_open_out *out) {
    struct file *file = NULL;
    bool frozen = reads_frozen(node, flags);
    bool settles = info->stx_size <= SMALL && (frozen || reads_quiet(r->plane, node, flags, info));
    uint64_t fh = file_add(r->plane, node, fd, flags, &file);
    if (!fh) {
        close(fd);
        return -ENOMEM;
    }
    file->settles = settles;
    if (!frozen)
        notice(r->plane, node, info);
    *out = (struct plane_open_out){.fh = fh, .open_flags = FOPEN_NOFLUSH};
    enter_mode(r, file, settles, out);
    if (settles && file->cached) {
        store_once(r, file, info->stx_size);
        *out = (struct plane_open_out){.fh = fh, .open_flags = FOPEN_NOFLUSH}; /* the room was used */
    }
    if (!file->passed && appends_only(flags)) {
        fcntl(fd, F_SETFL, O_APPEND);
        out->open_flags |= FOPEN_DIRECT_IO;
    }
    set_cache_flags(r, file, info, out);
    return sizeof *out;
}

static int open_flags(uint32_t flags) {
    return (int)(flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_TRUNC)) | O_CLOEXEC | O_NONBLOCK;
}

static int open_node(struct request *r, struct node *node, uint32_t flags) {
    struct statx info;
    creds_fsetid(r->worker, r->in->uid == 0);
    int fd = node_open(r->plane, node, open_flags(flags));
    if (fd < 0)
        return fd;
    int error = stat_fd(fd, &info);
    if (!error && !info.stx_nlink && node->pin < 0 && !node->data)
        error = -ESTALE; /* removed on the real path: let the kernel look its name up anew */
    if (error) {
        close(fd);
        return error;
    }
    int result = file_opened(r, node, fd, flags, &info, (struct plane_open_out *)r->out);
    if ((flags & O_ACCMODE) != O_RDONLY && atomic_load(&node->tree->told))
        notify_inode_now(r->plane, node->id, false); /* its attributes change without a word now */
    return result;
}

/* Whether the kernel has the data of a file, and it is what is there. */
static bool is_unchanged(struct request *r, struct node *node, uint32_t flags) {
    struct statx info;
    struct fdref ref;
    if (!node->settled || !node->tree->export->live || node->writers)
        return false;
    if (reads_frozen(node, flags))
        return true;
    if (fd_of(r->plane, node, &ref) < 0)
        return false;
    bool quiet = !stat_fd(ref.fd, &info) && info.stx_nlink && reads_quiet(r->plane, node, flags, &info);
    fd_release(r->plane, &ref);
    pthread_mutex_lock(node_lock(r->plane, node));
    bool same = quiet && node->seen == state_of(&info);
    pthread_mutex_unlock(node_lock(r->plane, node));
    return same;
}

int do_open(struct request *r) {
    const struct fuse_open_in *in = take(r, sizeof *in);
    struct node *node = node_find(r->plane, r->in->nodeid);
    int result = 0;
    if (!node)
        return -ESTALE;
    if (!in)
        result = -EINVAL;
    else if ((in->flags & O_ACCMODE) != O_RDONLY || in->flags & O_TRUNC)
        result = gate_node(r, node);
    if (!result && is_unchanged(r, node, in->flags))
        result = open_unopened(r, node, in->flags);
    else if (!result)
        result = open_node(r, node, in->flags);
    node_put(r->plane, node);
    return result;
}

int do_release(struct request *r) {
    const struct fuse_release_in *in = take(r, sizeof *in);
    if (in)
        file_remove(r->plane, in->fh);
    return 0;
}

int do_flush(struct request *r) {
    (void)r;
    return 0;
}
