/* What Python has rendered of the synthetic tree: objects with all entries in them, answered from here as long
   as nothing they show has changed. They hold for a moment only (Python says how long), and no longer than
   the generation they were rendered in, which every change of the store ends: Python tells of its own, and of
   others' changes tells an inotify(7) queue that is looked at before each answer. */
#include "plane.h"

#include <fnmatch.h>
#include <linux/btrfs.h>
#include <sys/inotify.h>

#define CHANGES (IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | IN_CLOSE_WRITE)
#define EVENTS_SIZE 4096

int published_init(struct plane *p) {
    struct published_all *all = &p->published;
    pthread_mutex_init(&all->lock, NULL);
    all->queue = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    all->ids = calloc(PUBLISHED_BUCKETS, sizeof *all->ids);
    all->names = calloc(PUBLISHED_BUCKETS, sizeof *all->names);
    all->groups = calloc(PUBLISHED_BUCKETS, sizeof *all->groups);
    return all->ids && all->names && all->groups ? 0 : -ENOMEM; /* without a queue nothing is published */
}

/* -- whether it is still so ------------------------------------------------------------------------ */

static bool is_change(const struct published_all *all, const struct inotify_event *event) {
    if (event->mask & (IN_Q_OVERFLOW | IN_IGNORED))
        return true;
    for (int i = 0; i < all->followed; i++)
        if (all->follows[i].watch == event->wd && event->len && !fnmatch(all->follows[i].pattern, event->name, 0))
            return true;
    return false;
}

/* Take in what happened until now. */
static void look_locked(struct published_all *all) {
    unsigned char events[EVENTS_SIZE] __attribute__((aligned(8)));
    ssize_t got;
    while ((got = read(all->queue, events, sizeof events)) > 0)
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *event = (const struct inotify_event *)(events + at);
            all->generation += is_change(all, event);
            at += (ssize_t)sizeof *event + event->len;
        }
}

static bool is_valid(const struct published_all *all, const struct published *object) {
    return object->generation == all->generation && monotonic_ns() < object->until_ns;
}

/* -- finding -------------------------------------------------------------------------------------- */

uint64_t published_bucket(uint64_t value) {
    return value * 0x9E3779B97F4A7C15ULL >> 49 & (PUBLISHED_BUCKETS - 1);
}

static uint64_t name_bucket(uint64_t parent, const char *name, size_t length) {
    uint64_t digest = parent;
    for (size_t i = 0; i < length; i++)
        digest = (digest ^ (unsigned char)name[i]) * 1099511628211ULL;
    return published_bucket(digest);
}

static struct published_link *find_locked(const struct published_all *all, uint64_t id) {
    struct published_link *link = all->ids[published_bucket(id)];
    while (link && link->object->entries[link->at].id != id)
        link = link->next;
    return link;
}

static bool is_named(const struct published *object, const fsd_entry *entry, const char *name, size_t length) {
    return entry->name_length == length && !memcmp(object->text + entry->name, name, length);
}

/* The object of that name in a table's directory. */
static bool find_named_locked(const struct published_all *all, uint64_t parent, const char *name,
                              struct published_place *place) {
    size_t length = strlen(name);
    struct published *object = all->names[name_bucket(parent, name, length)];
    while (object && (object->parent != parent || !is_named(object, object->entries, name, length)))
        object = object->next_named;
    *place = (struct published_place){object, 0};
    return object;
}

/* Take the lock and find what is published of a node and still so; without, the lock is not held at return. */
bool published_take(struct plane *p, uint64_t id, struct published_place *place) {
    struct published_all *all = &p->published;
    if (!atomic_load(&all->count))
        return false;
    pthread_mutex_lock(&all->lock);
    look_locked(all);
    struct published_link *link = find_locked(all, id);
    if (link && is_valid(all, link->object)) {
        *place = (struct published_place){link->object, link->at};
        return true;
    }
    pthread_mutex_unlock(&all->lock);
    return false;
}

/* The same for an entry of a directory, which may be a table's. */
bool published_take_child(struct plane *p, uint64_t parent, const char *name, struct published_place *place) {
    struct published_all *all = &p->published;
    if (!atomic_load(&all->count))
        return false;
    pthread_mutex_lock(&all->lock);
    look_locked(all);
    struct published_link *link = find_locked(all, parent);
    bool found = false;
    if (link) {
        const struct published *object = link->object;
        const struct published_range *range = object->ranges + link->at;
        size_t length = strlen(name);
        for (uint32_t at = range->first; at < range->first + range->count && !found; at++)
            if (is_named(object, object->entries + at, name, length)) {
                *place = (struct published_place){link->object, at};
                found = true;
            }
    } else {
        found = find_named_locked(all, parent, name, place);
    }
    if (found && is_valid(all, place->object))
        return true;
    pthread_mutex_unlock(&all->lock);
    return false;
}

/* The same for a listing under way, which goes on from what it began with. */
bool published_take_listing(struct plane *p, uint64_t id, uint32_t serial, struct published_place *place) {
    struct published_all *all = &p->published;
    pthread_mutex_lock(&all->lock);
    look_locked(all);
    struct published_link *link = find_locked(all, id);
    if (link && link->object->serial == serial) {
        *place = (struct published_place){link->object, link->at};
        return true;
    }
    pthread_mutex_unlock(&all->lock);
    return false;
}

bool published_is_valid(struct plane *p, const struct published_place *place) {
    return is_valid(&p->published, place->object);
}

/* Whether the object's subvolume was not changed, as far as its filesystem knows already. */
static bool is_unwritten(const struct published *object) {
    struct btrfs_ioctl_get_subvol_info_args info;
    int fd = object->subvolume ? open(object->subvolume, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool same = fd >= 0 && ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, &info) >= 0 && info.ctransid == object->transaction;
    if (fd >= 0)
        close(fd);
    return same;
}

/* Whether an entry's node and attributes can be told from here. */
bool published_is_answer(const struct published_place *place) {
    uint32_t flags = place->object->entries[place->at].flags;
    return !(flags & (FSD_ASKED | FSD_UNLOOKED)) && (!(flags & FSD_GUARDED) || is_unwritten(place->object));
}

void published_give(struct plane *p) {
    pthread_mutex_unlock(&p->published.lock);
}

/* How many entries that are or were published the kernel holds. */
uint64_t published_held(struct plane *p) {
    pthread_mutex_lock(&p->published.lock);
    uint64_t held = groups_held(&p->published);
    pthread_mutex_unlock(&p->published.lock);
    return held;
}

/* Lookups the kernel gives back; how many of them were not counted here. */
uint64_t published_forget(struct plane *p, uint64_t id, uint64_t lookups) {
    struct published_all *all = &p->published;
    if (!atomic_load(&all->group_count))
        return lookups;
    pthread_mutex_lock(&all->lock);
    lookups = group_forget(all, id, lookups);
    pthread_mutex_unlock(&all->lock);
    return lookups;
}

/* -- publishing ----------------------------------------------------------------------------------- */

static void object_free(struct published *object) {
    free(object->entries);
    free(object->ranges);
    free(object->links);
    free(object->text);
    free(object->subvolume);
    free(object);
}

static bool is_sound(const fsd_entry *entries, uint32_t count, uint32_t text_length) {
    for (uint32_t at = 0; at < count; at++) {
        const fsd_entry *entry = entries + at;
        bool in_order = at ? entry->parent < at && entry->parent >= entries[at - 1].parent : !entry->parent;
        if (!in_order || !entry->name_length || entry->name_length > LONGEST_NAME || entry->id & OURS ||
            entry->name > text_length || entry->name_length > text_length - entry->name ||
            entry->target > text_length || entry->target_length > text_length - entry->target ||
            entry->target_length >= PATH_MAX_TEXT)
            return false;
    }
    return count;
}

static void *copied(const void *from, size_t size) {
    void *copy = malloc(size + !size);
    return copy ? memcpy(copy, from, size) : NULL;
}

static struct published *object_new(const fsd_object *from) {
    struct published *object = calloc(1, sizeof *object);
    uint32_t count = from->count;
    if (!object)
        return NULL;
    object->count = count;
    object->parent = from->parent;
    object->owner = from->owner;
    object->generation = from->generation;
    object->entries = copied(from->entries, count * sizeof *object->entries);
    object->text = copied(from->text, from->text_length);
    object->ranges = calloc(count, sizeof *object->ranges);
    object->links = calloc(count, sizeof *object->links);
    object->transaction = from->transaction;
    object->subvolume = from->subvolume ? strdup(from->subvolume) : NULL;
    if (!object->entries || !object->text || !object->ranges || !object->links) {
        object_free(object);
        return NULL;
    }
    for (uint32_t at = 1; at < count; at++) {
        struct published_range *range = object->ranges + object->entries[at].parent;
        range->first = range->count++ ? range->first : at;
    }
    return object;
}

static void enter_locked(struct published_all *all, struct published *object) {
    const fsd_entry *top = object->entries;
    struct published **named = all->names + name_bucket(object->parent, object->text + top->name, top->name_length);
    for (uint32_t at = 0; at < object->count; at++) {
        struct published_link **bucket = all->ids + published_bucket(object->entries[at].id);
        object->links[at] = (struct published_link){*bucket, object, at};
        *bucket = object->links + at;
    }
    object->next_named = *named;
    *named = object;
    all->serial = (all->serial & 0x3fffffff) + 1;
    object->serial = all->serial;
    atomic_fetch_add(&all->count, 1);
}

static void leave_groups(struct published_all *all, const struct published *object, uint32_t count) {
    for (uint32_t at = 0; at < count; at++)
        group_leave(all, object->entries[at].id);
}

static void remove_locked(struct published_all *all, struct published *object) {
    const fsd_entry *top = object->entries;
    struct published **named = all->names + name_bucket(object->parent, object->text + top->name, top->name_length);
    for (uint32_t at = 0; at < object->count; at++) {
        struct published_link **link = all->ids + published_bucket(object->entries[at].id);
        while (*link != object->links + at)
            link = &(*link)->next;
        *link = (*link)->next;
    }
    while (*named != object)
        named = &(*named)->next_named;
    *named = object->next_named;
    atomic_fetch_sub(&all->count, 1);
    leave_groups(all, object, object->count);
}

/* Whether all can be published: no node of it is yet. */
static int join_groups(struct published_all *all, const struct published *object) {
    for (uint32_t at = 0; at < object->count; at++)
        if (find_locked(all, object->entries[at].id))
            return -EEXIST;
    for (uint32_t at = 0; at < object->count; at++)
        if (!group_enter(all, object->entries[at].id)) {
            leave_groups(all, object, at);
            return -ENOMEM;
        }
    return 0;
}

static void refuse(struct published_all *all, const struct published *object) {
    for (uint32_t at = 0; at < object->count; at++)
        group_refused(all, object->entries[at].id);
}

/* Answer for an object from now on. EEXIST: one of its nodes is published already; ESTALE: what it was rendered
   from has changed since. */
int fsd_publish(plane *p, const fsd_object *from) {
    struct published_all *all = &p->published;
    if (!is_sound(from->entries, from->count, from->text_length))
        return -EINVAL;
    struct published *object = object_new(from);
    if (!object)
        return -ENOMEM;
    pthread_mutex_lock(&all->lock);
    look_locked(all);
    int error = all->followed && from->generation == all->generation ? 0 : -ESTALE;
    if (!error)
        error = join_groups(all, object);
    if (!error) {
        object->until_ns = monotonic_ns() + from->lasts_ns;
        enter_locked(all, object);
    } else {
        refuse(all, object);
    }
    pthread_mutex_unlock(&all->lock);
    if (error)
        object_free(object);
    return error;
}

/* Answer no more for an object. */
int fsd_retract(plane *p, uint64_t id) {
    struct published_all *all = &p->published;
    pthread_mutex_lock(&all->lock);
    struct published_link *link = find_locked(all, id);
    struct published *object = link && !link->at ? link->object : NULL;
    if (object)
        remove_locked(all, object);
    pthread_mutex_unlock(&all->lock);
    if (!object)
        return -ENOENT;
    object_free(object);
    return 0;
}

/* The generation of now: what is rendered after this call may be published with it. */
uint64_t fsd_generation(plane *p) {
    pthread_mutex_lock(&p->published.lock);
    look_locked(&p->published);
    uint64_t generation = p->published.generation;
    pthread_mutex_unlock(&p->published.lock);
    return generation;
}

/* What was published until now is not so any more. */
void fsd_outdate(plane *p) {
    pthread_mutex_lock(&p->published.lock);
    p->published.generation++;
    pthread_mutex_unlock(&p->published.lock);
}

/* What is published of one object is not so any more. */
void fsd_expire(plane *p, uint64_t id) {
    pthread_mutex_lock(&p->published.lock);
    struct published_link *link = find_locked(&p->published, id);
    if (link)
        link->object->until_ns = 0;
    pthread_mutex_unlock(&p->published.lock);
}

static bool is_followed(const struct published_all *all, int watch, const char *pattern) {
    for (int i = 0; i < all->followed; i++)
        if (all->follows[i].watch == watch && !strcmp(all->follows[i].pattern, pattern))
            return true;
    return false;
}

/* A file of that pattern in the directory is part of what is shown: replacing it outdates what is published. */
int fsd_follow(plane *p, const char *directory, const char *pattern) {
    struct published_all *all = &p->published;
    int error = 0;
    pthread_mutex_lock(&all->lock);
    int watch = all->queue < 0 ? -1 : inotify_add_watch(all->queue, directory, CHANGES);
    if (watch < 0)
        error = all->queue < 0 ? -EMFILE : -errno;
    else if ((all->followed == FOLLOWED_MAX && !is_followed(all, watch, pattern)) ||
             strlen(pattern) >= sizeof all->follows->pattern)
        error = -E2BIG;
    if (!error && !is_followed(all, watch, pattern)) {
        struct followed *follow = all->follows + all->followed++;
        follow->watch = watch;
        strcpy(follow->pattern, pattern);
        all->generation++;
    }
    pthread_mutex_unlock(&all->lock);
    return error;
}

/* Python has texts about what failed at these nodes. */
void fsd_failed(plane *p, const uint64_t *ids, uint32_t count) {
    pthread_mutex_lock(&p->published.lock);
    p->published.failed_count = count < FAILED_MAX ? count : FAILED_MAX;
    memcpy(p->published.failed, ids, p->published.failed_count * sizeof *ids);
    pthread_mutex_unlock(&p->published.lock);
}

bool has_failed(struct plane *p, uint64_t id) {
    bool found = false;
    pthread_mutex_lock(&p->published.lock);
    for (uint32_t i = 0; i < p->published.failed_count && !found; i++)
        found = p->published.failed[i] == id;
    pthread_mutex_unlock(&p->published.lock);
    return found;
}

void published_free(struct plane *p) {
    struct published_all *all = &p->published;
    for (uint32_t i = 0; all->names && i < PUBLISHED_BUCKETS; i++)
        for (struct published *object = all->names[i], *next; object; object = next) {
            next = object->next_named;
            object_free(object);
        }
    groups_free(all);
    free(all->ids);
    free(all->names);
    if (all->queue >= 0)
        close(all->queue);
    pthread_mutex_destroy(&all->lock);
}
