/* Directory listings, with the attributes of every entry. Offsets are the real filesystem's own. */
#include "scan.h"

#include <dirent.h>
#include <endian.h>
#include <sys/syscall.h>

#define RAW_SIZE 16384
#define UNSCANNED (-10004) /* has to be listed by calls */
#define LARGE_PART 65536
#define FIRST_OFFSET 2     /* of what is no dot */

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
    struct reading *inodes; /* where attributes are read in bulk */
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
    if (may_keep(r->plane, r->changes, node)) /* elsewhere each listing brings fresh attributes along */
        out->open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
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

static int child_at(struct listing *list, const struct raw_entry *raw, struct child *child) {
    if (!list->inodes)
        return child_of(list->r, list->node, list->directory, raw->name, child);
    if (!scan_stat(list->inodes, raw->inode, &child->info))
        return UNSCANNED;
    return enter(list->r, list->node->tree, NULL, list->node, raw->name, child);
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
    int error = child_at(list, raw, &child);
    if (error)
        return error == -ENOENT || error == -ESTALE ? 1 : error;
    put_entry(list->r->plane, list->r->changes, child.node, &child.info, (struct fuse_entry_out *)at);
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

/* -- of trees read in bulk ------------------------------------------------------------------------- */

/* An entry in the form of getdents64(2). */
union made {
    struct raw_entry raw;
    unsigned char bytes[offsetof(struct raw_entry, name) + LONGEST_NAME + 1];
};

static void make_entry(union made *made, uint64_t inode, int64_t next, unsigned char type, const void *name,
                       size_t length) {
    made->raw.inode = inode;
    made->raw.next = next;
    made->raw.type = type;
    memcpy(made->raw.name, name, length);
    made->raw.name[length] = 0;
}

/* Only entries that lead to inodes of the same tree can be read so. */
static int put_item(struct listing *list, const struct item *item) {
    static const unsigned char types[] = {DT_UNKNOWN, DT_REG, DT_DIR, DT_CHR, DT_BLK, DT_FIFO, DT_SOCK, DT_LNK};
    struct btrfs_dir_item entry;
    union made made;
    if (item->head.len < sizeof entry)
        return UNSCANNED;
    memcpy(&entry, item->data, sizeof entry);
    size_t length = le16toh(entry.name_len);
    if (entry.location.type != BTRFS_INODE_ITEM_KEY || !length || length > LONGEST_NAME ||
        item->head.len < sizeof entry + length || entry.type >= sizeof types)
        return UNSCANNED;
    make_entry(&made, le64toh(entry.location.objectid), (int64_t)item->head.offset + 1, types[entry.type],
               item->data + sizeof entry, length);
    return put_one(list, &made.raw);
}

/* The items of directory `inode` from `at` on; stops with 0 when the answer is full. */
static int put_items(struct listing *list, const struct found *found, uint32_t at, uint64_t inode, uint64_t offset) {
    struct item item;
    int result = 1;
    while (result > 0 && search_next(found, &at, &item) && item.head.objectid == inode)
        if (item.head.type == BTRFS_DIR_INDEX_KEY && item.head.offset >= offset)
            result = put_item(list, &item);
    return result;
}

/* A directory too large for a window. */
static int put_large(struct listing *list, uint64_t inode, uint64_t offset) {
    const struct tree *tree = list->node->tree;
    struct range range = {.first = inode,
                          .last = inode,
                          .offset = offset,
                          .type = BTRFS_DIR_INDEX_KEY,
                          .last_type = BTRFS_DIR_INDEX_KEY};
    struct found *found = malloc(sizeof *found);
    int result = found ? search(tree->export->mount, tree->subvolume, &range, found, LARGE_PART) : UNSCANNED;
    if (result == 0)
        result = put_items(list, found, 0, inode, offset);
    free(found);
    return result < 0 ? UNSCANNED : result;
}

static uint64_t parent_of(const struct found *found, uint32_t at, uint64_t inode) {
    struct item item;
    while (search_next(found, &at, &item) && item.head.objectid == inode)
        if (item.head.type == BTRFS_INODE_REF_KEY)
            return item.head.offset;
    return inode;
}

static int put_dots(struct listing *list, uint64_t offset, uint64_t inode, uint64_t parent) {
    union made made;
    int result = 1;
    for (uint64_t at = offset; at < FIRST_OFFSET && result > 0; at++) {
        make_entry(&made, at ? parent : inode, (int64_t)at + 1, DT_DIR, "..", at + 1);
        result = put_one(list, &made.raw);
    }
    return result;
}

static int fill_scanned(struct listing *list, struct reading *own, uint64_t offset) {
    uint64_t inode = list->node->id & INODE_MASK;
    uint32_t at;
    if (!scan_find(own, inode, &at))
        return UNSCANNED;
    const struct window *w = own->window;
    int result = put_dots(list, offset, inode, parent_of(&w->found, at, inode));
    if (result > 0)
        result = w->partial == inode ? put_large(list, inode, offset)
                                     : put_items(list, &w->found, at, inode, offset);
    return result < 0 && !list->used ? result : (int)list->used;
}

static int list_scanned(struct listing *list, uint64_t offset) {
    struct reading own, inodes;
    if (!scan_begin(list->r->plane, list->node, &own))
        return UNSCANNED;
    inodes = own;
    list->inodes = &inodes;
    int result = fill_scanned(list, &own, offset);
    list->inodes = NULL;
    scan_end(&inodes);
    scan_end(&own);
    return result;
}

/* -- requests -------------------------------------------------------------------------------------- */

static int list_by_calls(struct listing *list, int64_t offset) {
    struct plane *p = list->r->plane;
    struct fdref ref;
    int result = fd_of(p, list->node, &ref);
    if (result < 0)
        return result;
    list->directory = ref.fd;
    result = fill(list, &ref, offset);
    fd_release(p, &ref);
    if (result == PARK && list->plus)
        uncount(list);
    return result;
}

static int list(struct request *r, bool plus) {
    const struct fuse_read_in *in = take(r, sizeof *in);
    struct node *node = in ? node_find(r->plane, r->in->nodeid) : NULL;
    if (!node)
        return in ? -ESTALE : -EINVAL;
    struct listing listing = {
        .r = r, .node = node, .plus = plus, .out = r->out, .size = in->size < DATA_MAX ? in->size : DATA_MAX};
    int result = list_scanned(&listing, in->offset);
    if (result == UNSCANNED)
        result = list_by_calls(&listing, (int64_t)in->offset);
    node_put(r->plane, node);
    return result;
}

int do_readdir(struct request *r) {
    return list(r, false);
}

int do_readdirplus(struct request *r) {
    return list(r, true);
}
