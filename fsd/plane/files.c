/* Open files. A file is either passed through, so that the kernel reads and writes the real file itself,
   or read and written by requests; one inode is never both at once. */
#include "plane.h"

#include <sys/ioctl.h>

#define SMALL (256 << 10) /* files up to this size do better in the page cache of the mount */
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

/* The handle of a new open file, which takes over the descriptor and holds the node; 0 without memory. */
static uint64_t file_add(struct plane *p, struct node *node, int fd, uint32_t flags, struct file **added) {
    struct file *file = calloc(1, sizeof *file);
    uint64_t fh = 0;
    if (!file)
        return 0;
    node_hold(node);
    *file = (struct file){.node = node, .fd = fd, .flags = flags};
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

struct file *file_get(struct plane *p, uint64_t fh) {
    pthread_mutex_lock(&p->files_lock);
    struct file *file = at_handle(p, fh);
    if (file)
        atomic_fetch_add(&file->refs, 1);
    pthread_mutex_unlock(&p->files_lock);
    return file;
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

/* Whether data that was read once may be served from the cache of the mount: nobody else changes it. */
static bool prefers_cache(const struct node *node, uint32_t flags, const struct statx *info) {
    return node->tree->export->flags & FSD_FROZEN && info->stx_size <= SMALL &&
           (flags & O_ACCMODE) == O_RDONLY;
}

static int32_t open_backing(struct request *r, int fd) {
    struct fuse_backing_map map = {.fd = fd};
    creds_fsetid(r->worker, r->in->uid == 0); /* the kernel writes with what this thread may do now */
    int id = ioctl(r->plane->device, FUSE_DEV_IOC_BACKING_OPEN, &map);
    if (id > 0)
        atomic_fetch_add(&r->plane->backings, 1);
    return id;
}

static struct data_state *data_of(struct node *node) {
    if (!node->data)
        node->data = calloc(1, sizeof *node->data);
    return node->data;
}

/* Choose the mode of a new open file, the same as that of the inode's other open files. */
static void enter_mode(struct request *r, struct file *file, const struct statx *info,
                       struct plane_open_out *out) {
    struct node *node = file->node;
    bool may = atomic_load(&r->plane->passthrough) && !prefers_cache(node, file->flags, info) &&
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

/* Take over the descriptor of a file just opened, and fill in the answer. */
int file_opened(struct request *r, struct node *node, int fd, uint32_t flags, const struct statx *info,
                struct plane_open_out *out) {
    struct file *file = NULL;
    memset(out, 0, sizeof *out);
    out->fh = file_add(r->plane, node, fd, flags, &file);
    if (!out->fh) {
        close(fd);
        return -ENOMEM;
    }
    out->open_flags = FOPEN_NOFLUSH;
    enter_mode(r, file, info, out);
    if (!file->passed && appends_only(flags)) {
        fcntl(fd, F_SETFL, O_APPEND);
        out->open_flags |= FOPEN_DIRECT_IO;
    }
    uint64_t state = state_of(info);
    pthread_mutex_lock(node_lock(r->plane, node));
    if (node->seen == state && file->cached) /* the kernel refuses it together with passthrough */
        out->open_flags |= FOPEN_KEEP_CACHE;
    node->seen = state;
    pthread_mutex_unlock(node_lock(r->plane, node));
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
    if (!error)
        return file_opened(r, node, fd, flags, &info, (struct plane_open_out *)r->out);
    close(fd);
    return error;
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
    if (!result)
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
