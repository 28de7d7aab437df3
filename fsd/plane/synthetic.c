/* What is answered here for Python's nodes: what is published of them, and what everybody asks and is always
   the same. */
#include "plane.h"

static bool is_file(struct plane *p, uint64_t id) {
    struct published_place place;
    if (!published_take(p, id, &place))
        return false;
    bool regular = S_ISREG(place.object->entries[place.at].mode);
    published_give(p);
    return regular;
}

/* EOPNOTSUPP lets ls stop asking for ACLs, but the kernel fails every access with it that it asks an ACL about:
   those of anybody but the owner (acl_permission_check). Directories have none, or ls would stop as soon as it
   sees the "..", in a rootfs. */
static int no_acl(struct request *r) {
    return r->in->uid == r->plane->own_uid && is_file(r->plane, r->in->nodeid) ? -EOPNOTSUPP : -ENODATA;
}

/* Attributes that tools and the kernel probe for on every entry: there are none. EOPNOTSUPP lets ls stop
   asking. */
static int getxattr(struct request *r) {
    size_t head = sizeof(struct fuse_getxattr_in);
    const char *name = take_text(r, head);
    if (!name || (!strcmp(name, "user.fsd.error") && has_failed(r->plane, r->in->nodeid)))
        return FORWARD;
    if (is_acl(name))
        return no_acl(r);
    return strncmp(name, "security.", 9) ? -ENODATA : -EOPNOTSUPP;
}

/* Where nothing failed there are none. */
static int listxattr_none(struct request *r) {
    const struct fuse_getxattr_in *in = take(r, sizeof *in);
    if (!in || has_failed(r->plane, r->in->nodeid))
        return FORWARD;
    if (in->size)
        return 0;
    *(struct fuse_getxattr_out *)r->out = (struct fuse_getxattr_out){0};
    return sizeof(struct fuse_getxattr_out);
}

/* -- what is published ---------------------------------------------------------------------------- */

static void put_shown(struct plane *p, const fsd_entry *entry, struct fuse_attr *attr) {
    memset(attr, 0, sizeof *attr);
    attr->ino = entry->id;
    attr->size = entry->size;
    attr->blocks = S_ISDIR(entry->mode) ? 0 : (entry->size + 511) / 512;
    attr->atime = attr->mtime = attr->ctime = (uint64_t)(entry->mtime_ns / 1000000000);
    attr->atimensec = attr->mtimensec = attr->ctimensec = (uint32_t)(entry->mtime_ns % 1000000000);
    attr->mode = entry->mode;
    attr->nlink = entry->nlink;
    attr->uid = p->own_uid;
    attr->gid = p->own_gid;
    attr->blksize = 4096;
}

static void put_time_out(uint32_t milliseconds, uint64_t *seconds, uint32_t *rest) {
    *seconds = milliseconds / 1000;
    *rest = milliseconds % 1000 * 1000000;
}

static void put_shown_entry(struct plane *p, const fsd_entry *entry, uint32_t keep, struct fuse_entry_out *out) {
    out->nodeid = entry->id;
    out->generation = entry->generation;
    put_time_out(entry->keep_name, &out->entry_valid, &out->entry_valid_nsec);
    put_time_out(keep, &out->attr_valid, &out->attr_valid_nsec);
    put_shown(p, entry, &out->attr);
}

static int lookup_shown(struct request *r) {
    const char *name = take_name(r, 0);
    struct published_place place;
    int result = FORWARD;
    if (!name || !published_take_child(r->plane, r->in->nodeid, name, &place))
        return FORWARD;
    const fsd_entry *entry = place.object->entries + place.at;
    if (published_is_answer(&place)) {
        put_shown_entry(r->plane, entry, entry->keep, (struct fuse_entry_out *)r->out);
        group_count(&r->plane->published, entry->id);
        result = sizeof(struct fuse_entry_out);
    }
    published_give(r->plane);
    return result;
}

static int getattr_shown(struct request *r) {
    struct published_place place;
    int result = FORWARD;
    if (!published_take(r->plane, r->in->nodeid, &place))
        return FORWARD;
    const fsd_entry *entry = place.object->entries + place.at;
    if (published_is_answer(&place)) {
        struct fuse_attr_out *out = (struct fuse_attr_out *)r->out;
        memset(out, 0, sizeof *out);
        put_time_out(entry->keep, &out->attr_valid, &out->attr_valid_nsec);
        put_shown(r->plane, entry, &out->attr);
        result = sizeof *out;
    }
    published_give(r->plane);
    return result;
}

static int readlink_shown(struct request *r) {
    struct published_place place;
    int result = FORWARD;
    if (!published_take(r->plane, r->in->nodeid, &place))
        return FORWARD;
    const fsd_entry *entry = place.object->entries + place.at;
    if (S_ISLNK(entry->mode)) {
        memcpy(r->out, place.object->text + entry->target, entry->target_length);
        result = (int)entry->target_length;
    }
    published_give(r->plane);
    return result;
}

/* -- directories ---------------------------------------------------------------------------------- */

static int opendir_shown(struct request *r) {
    struct published_place place;
    if (!published_take(r->plane, r->in->nodeid, &place))
        return FORWARD;
    fsd_entry *entry = place.object->entries + place.at;
    fsd_event event = {.kind = FSD_OPENED, .nodeid = entry->id};
    uint64_t owner = place.at ? 0 : place.object->owner;
    uint32_t flags = entry->flags;
    if (flags & FSD_LISTED)
        entry->flags &= ~(uint32_t)FSD_TOLD;
    published_give(r->plane);
    if (!(flags & FSD_LISTED))
        return FORWARD;
    if (flags & FSD_TOLD)
        event_push(r->plane, &event);
    deny_lister(r->plane, r->in->pid, owner);
    struct fuse_open_out *out = (struct fuse_open_out *)r->out;
    *out = (struct fuse_open_out){.fh = PUBLISHED_HANDLE | r->in->nodeid};
    return sizeof *out;
}

static int releasedir(struct request *r) {
    const struct fuse_release_in *in = take(r, sizeof *in);
    return in && in->fh & PUBLISHED_HANDLE ? 0 : FORWARD;
}

/* Put one entry into a listing; its length, 0 when there is no room. */
static size_t put_listed(struct plane *p, const struct published_place *place, uint64_t next, bool plus, bool valid,
                         unsigned char *out, size_t room) {
    const fsd_entry *entry = place->object->entries + place->at;
    size_t head = plus ? sizeof(struct fuse_entry_out) : 0, length = entry->name_length;
    size_t whole = head + FUSE_REC_ALIGN(FUSE_NAME_OFFSET + length);
    struct fuse_dirent *dirent = (struct fuse_dirent *)(out + head);
    if (whole > room)
        return 0;
    memset(out, 0, whole);
    if (plus && valid && (entry->flags & FSD_ASKED || published_is_answer(place))) {
        put_shown_entry(p, entry, entry->keep_listed, (struct fuse_entry_out *)out);
        group_count(&p->published, entry->id);
    }
    dirent->ino = entry->id;
    dirent->off = next;
    dirent->namelen = entry->name_length;
    dirent->type = (entry->mode & S_IFMT) >> 12;
    memcpy(dirent->name, place->object->text + entry->name, length);
    return whole;
}

/* Entries from the one at `from` on. What is outdated meanwhile is listed without attributes. */
static int list_shown(struct request *r, const struct published_place *directory, uint32_t from, size_t size) {
    const struct published_range *range = directory->object->ranges + directory->at;
    uint64_t serial = (uint64_t)directory->object->serial << SERIAL_SHIFT;
    bool plus = r->in->opcode == FUSE_READDIRPLUS, valid = published_is_valid(r->plane, directory);
    size_t used = 0, put = 1;
    for (uint32_t at = from; at < range->count && put; at++) {
        struct published_place place = {directory->object, range->first + at};
        uint64_t next = serial | (at + 1 < range->count ? 0 : LISTING_END) | (at + 1);
        put = put_listed(r->plane, &place, next, plus, valid, r->out + used, size - used);
        used += put;
    }
    return used || from >= range->count ? (int)used : -EINVAL;
}

static int readdir_shown(struct request *r) {
    struct fuse_read_in *in = (struct fuse_read_in *)take(r, sizeof *in);
    struct published_place place;
    if (!in)
        return FORWARD;
    if (in->offset & LISTING_END) /* the kernel asks until the answer is empty */
        return 0;
    uint32_t serial = (uint32_t)(in->offset >> SERIAL_SHIFT), from = (uint32_t)in->offset;
    bool found = serial ? published_take_listing(r->plane, r->in->nodeid, serial, &place)
                        : !from && published_take(r->plane, r->in->nodeid, &place);
    int result = FORWARD;
    if (found) {
        if (place.object->entries[place.at].flags & FSD_LISTED)
            result = list_shown(r, &place, from, in->size < DATA_MAX ? in->size : DATA_MAX);
        published_give(r->plane);
    }
    if (result == FORWARD)
        in->offset = from; /* as Python counts them too */
    return result;
}

static int answer(struct request *r) {
    switch (r->in->opcode) {
    case FUSE_LOOKUP:
        return lookup_shown(r);
    case FUSE_GETATTR:
        return getattr_shown(r);
    case FUSE_READLINK:
        return readlink_shown(r);
    case FUSE_GETXATTR:
        return getxattr(r);
    case FUSE_LISTXATTR:
        return listxattr_none(r);
    case FUSE_OPENDIR:
        return opendir_shown(r);
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return readdir_shown(r);
    case FUSE_RELEASEDIR:
        return releasedir(r);
    default:
        return FORWARD;
    }
}

int synthetic(struct request *r) {
    int result = answer(r);
    if (result != FORWARD)
        atomic_fetch_add(&r->plane->published.answered, 1);
    return result;
}

/* Python marks the handles of directories whose listing the kernel may keep. */
void synthetic_opened(struct fuse_open_out *out) {
    if (out->fh & KEEPS_LISTING)
        out->open_flags |= FOPEN_CACHE_DIR;
    if (out->fh & KEPT_LISTING)
        out->open_flags |= FOPEN_KEEP_CACHE;
}
