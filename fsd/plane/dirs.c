/* Directory listings, with the attributes of every entry. Offsets are the real filesystem's own. */
#include "plane.h"

#include <sys/syscall.h>

#define RAW_SIZE 16384

struct raw_entry {
    uint64_t inode;
    int64_t next;
    unsigned short length;
    unsigned char type;
    char name[];
};

/* A listing being written. */
struct listing {
    struct request *r;
    struct node *node;
    int directory;
    bool plus;
    unsigned char *out;
    size_t size, used;
};

int do_opendir(struct request *r) {
    struct plane_open_out *out = (struct plane_open_out *)r->out;
    struct node *node = node_find(r->plane, r->in->nodeid);
    if (!node)
        return -ESTALE;
    memset(out, 0, sizeof *out);
    out->fh = OURS;
    if (node->tree->export->flags & FSD_FROZEN) /* elsewhere each listing brings fresh attributes along */
        out->open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
    prefetch_add(r->plane, node->id);
    node_put(r->plane, node);
    return sizeof *out;
}

int do_releasedir(struct request *r) {
    (void)r;
    return 0;
}

int do_fsyncdir(struct request *r) {
    const struct fuse_fsync_in *in = take(r, sizeof *in);
    struct node *node = node_find(r->plane, r->in->nodeid);
    if (!node)
        return -ESTALE;
    int fd = in ? node_open(r->plane, node, O_RDONLY | O_DIRECTORY) : -EINVAL, result = fd;
    if (fd >= 0) {
        result = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd);
        result = result ? -errno : 0;
        close(fd);
    }
    node_put(r->plane, node);
    return result;
}

static bool is_dots(const char *name) {
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

static void put_dirent(struct fuse_dirent *dirent, uint64_t id, const struct raw_entry *raw, size_t length) {
    dirent->ino = id;
    dirent->off = (uint64_t)raw->next;
    dirent->namelen = (uint32_t)length;
    dirent->type = raw->type;
    memcpy(dirent->name, raw->name, length);
    memset(dirent->name + length, 0, FUSE_REC_ALIGN(FUSE_NAME_OFFSET + length) - FUSE_NAME_OFFSET - length);
}

/* Returns 1 when the entry was written or left out, 0 when there is no more room, or a negated errno. */
static int put_one(struct listing *list, const struct raw_entry *raw) {
    size_t length = strlen(raw->name), head = list->plus ? sizeof(struct fuse_entry_out) : 0;
    size_t whole = head + FUSE_REC_ALIGN(FUSE_NAME_OFFSET + length);
    unsigned char *at = list->out + list->used;
    struct fuse_dirent *dirent = (struct fuse_dirent *)(at + head);
    struct child child;
    if (list->used + whole > list->size)
        return 0;
    if (!list->plus || is_dots(raw->name)) {
        memset(at, 0, head);
        put_dirent(dirent, tree_id(list->node->tree, raw->inode), raw, length);
        list->used += whole;
        return 1;
    }
    int error = child_of(list->r, list->node, list->directory, raw->name, &child);
    if (error)
        return error == -ENOENT || error == -ESTALE ? 1 : error;
    put_entry(child.node, &child.info, (struct fuse_entry_out *)at);
    put_dirent(dirent, child.node->id, raw, length);
    list->used += whole;
    node_count(list->r->plane, child.node);
    child_drop(list->r, &child);
    return 1;
}

static int read_raw(struct plane *p, const struct fdref *ref, int64_t offset, void *raw, size_t size) {
    slot_lock(p, ref);
    long got = lseek(ref->fd, offset, SEEK_SET) < 0 ? -1 : syscall(SYS_getdents64, ref->fd, raw, size);
    int error = errno;
    slot_unlock(p, ref);
    return got < 0 ? -error : (int)got;
}

/* Write one reading's entries; stops with 0 when the answer is full. */
static int put_entries(struct listing *list, const unsigned char *raw, int length, int64_t *offset) {
    int at = 0, result = 1;
    while (at < length && result > 0) {
        const struct raw_entry *entry = (const struct raw_entry *)(raw + at);
        result = put_one(list, entry);
        if (result > 0)
            *offset = entry->next;
        at += entry->length;
    }
    return result;
}

static int fill(struct listing *list, const struct fdref *ref, int64_t offset) {
    unsigned char raw[RAW_SIZE] __attribute__((aligned(8)));
    size_t part = list->plus ? list->size / 5 : list->size;
    part = part < 1024 ? 1024 : part > sizeof raw ? sizeof raw : part;
    int result = 1;
    while (result > 0) {
        int got = read_raw(list->r->plane, ref, offset, raw, part);
        if (got <= 0)
            return list->used ? (int)list->used : got;
        result = put_entries(list, raw, got, &offset);
    }
    return result == PARK || !list->used ? result : (int)list->used;
}

/* Entries that were counted but will not be sent: the whole request is done again later. */
static void uncount(struct listing *list) {
    for (size_t at = 0; at < list->used;) {
        struct fuse_direntplus *entry = (struct fuse_direntplus *)(list->out + at);
        if (entry->entry_out.nodeid)
            node_forget(list->r->plane, entry->entry_out.nodeid, 1);
        at += sizeof entry->entry_out + FUSE_REC_ALIGN(FUSE_NAME_OFFSET + entry->dirent.namelen);
    }
}

static int list(struct request *r, bool plus) {
    const struct fuse_read_in *in = take(r, sizeof *in);
    struct node *node = node_find(r->plane, r->in->nodeid);
    struct fdref ref;
    if (!node)
        return -ESTALE;
    int result = in ? fd_of(r->plane, node, &ref) : -EINVAL;
    if (result >= 0) {
        struct listing listing = {r, node, ref.fd, plus, r->out, in->size, 0};
        if (listing.size > DATA_MAX)
            listing.size = DATA_MAX;
        result = fill(&listing, &ref, (int64_t)in->offset);
        fd_release(r->plane, &ref);
        if (result == PARK && plus)
            uncount(&listing);
    }
    node_put(r->plane, node);
    return result;
}

int do_readdir(struct request *r) {
    return list(r, false);
}

int do_readdirplus(struct request *r) {
    return list(r, true);
}
