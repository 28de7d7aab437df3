/* How often the kernel has looked up what is, or was, published. Lookups are counted by group, an entry of the tree
   and its fixed entries (fsd/inodes.py): Python makes the nodes of a group as long as anything of it is published
   or held here, and is told of it once when nothing is. All of it belongs to the lock of what is published. */
#include "plane.h"

struct group {
    struct group *next;
    uint64_t number;
    uint32_t published, held; /* entries that are published; those the kernel holds */
    uint32_t size;            /* of counts, which are lookups by place */
    uint32_t counts[];
};

static struct group **find(struct published_all *all, uint64_t id) {
    uint64_t number = id / FSD_PLACES;
    struct group **link = all->groups + published_bucket(number);
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

/* Few groups have more than the entry itself. */
static uint32_t size_for(uint32_t place) {
    return place < 4 ? 4 : (place | 31) + 1;
}

/* A group with room for a place. */
static struct group *group_for(struct published_all *all, uint64_t id) {
    struct group **link = find(all, id), *group = *link;
    uint32_t size = size_for(id % FSD_PLACES), before = group ? group->size : 0;
    if (group && size <= before)
        return group;
    struct group *grown = realloc(group, sizeof *group + size * sizeof *group->counts);
    if (!grown)
        return NULL;
    if (!group) {
        *grown = (struct group){.number = id / FSD_PLACES};
        atomic_fetch_add(&all->group_count, 1);
    }
    memset(grown->counts + before, 0, (size - before) * sizeof *grown->counts);
    grown->size = size;
    return *link = grown;
}

static void tell_released(struct published_all *all, uint64_t number) {
    if (all->released_count == all->released_room) {
        uint32_t room = all->released_room * 2 + 64;
        uint64_t *grown = realloc(all->released, room * sizeof *grown);
        if (!grown)
            return; /* Python goes on keeping it */
        all->released = grown;
        all->released_room = room;
    }
    all->released[all->released_count++] = number;
}

static void drop_idle(struct published_all *all, struct group **link) {
    struct group *group = *link;
    if (group->published || group->held)
        return;
    *link = group->next;
    tell_released(all, group->number);
    free(group);
    atomic_fetch_sub(&all->group_count, 1);
}

/* An entry is published from now on; false without memory. */
bool group_enter(struct published_all *all, uint64_t id) {
    struct group *group = group_for(all, id);
    if (group)
        group->published++;
    return group;
}

/* It is not any more. */
void group_leave(struct published_all *all, uint64_t id) {
    struct group **link = find(all, id);
    (*link)->published--;
    drop_idle(all, link);
}

/* What was to be published is not: Python keeps no more of it than is kept here. */
void group_refused(struct published_all *all, uint64_t id) {
    if (!*find(all, id))
        tell_released(all, id / FSD_PLACES);
}

/* The kernel is told of a published entry. */
void group_count(struct published_all *all, uint64_t id) {
    struct group *group = *find(all, id);
    group->held += !group->counts[id % FSD_PLACES]++;
}

/* Lookups the kernel gives back; how many of them were not counted here. */
uint64_t group_forget(struct published_all *all, uint64_t id, uint64_t lookups) {
    struct group **link = find(all, id), *group = *link;
    if (!group || id % FSD_PLACES >= group->size)
        return lookups;
    uint32_t *counted = group->counts + id % FSD_PLACES;
    uint64_t ours = *counted < lookups ? *counted : lookups;
    *counted -= (uint32_t)ours;
    if (ours && !*counted) {
        group->held--;
        drop_idle(all, link);
    }
    return lookups - ours;
}

/* How many entries the kernel holds. */
uint64_t groups_held(const struct published_all *all) {
    uint64_t held = 0;
    for (uint32_t i = 0; i < PUBLISHED_BUCKETS; i++)
        for (const struct group *group = all->groups[i]; group; group = group->next)
            held += group->held;
    return held;
}

/* Groups of which nothing is published or held any more, by the node id 0 of each; those that came back are left
   out. */
int fsd_released(plane *p, uint64_t *ids, uint32_t room) {
    struct published_all *all = &p->published;
    uint32_t found = 0;
    pthread_mutex_lock(&all->lock);
    while (found < room && all->released_count) {
        uint64_t id = all->released[--all->released_count] * FSD_PLACES;
        if (!*find(all, id))
            ids[found++] = id;
    }
    pthread_mutex_unlock(&all->lock);
    return (int)found;
}

void groups_free(struct published_all *all) {
    for (uint32_t i = 0; all->groups && i < PUBLISHED_BUCKETS; i++)
        for (struct group *group = all->groups[i], *next; group; group = next) {
            next = group->next;
            free(group);
        }
    free(all->groups);
    free(all->released);
}
