/* The items of a btrfs tree as BTRFS_IOC_TREE_SEARCH_V2 gives them (linux/btrfs.h, linux/btrfs_tree.h). */
#include "scan.h"

#include <sys/ioctl.h>

#define HEAD sizeof(struct btrfs_ioctl_search_header)
#define ITEM_MAX (64u << 10) /* no item is larger than a node of a tree */

/* The item at `*at`, and where the next one is. */
bool search_next(const struct found *found, uint32_t *at, struct item *item) {
    if (*at + HEAD > found->length)
        return false;
    memcpy(&item->head, found->items + *at, HEAD);
    item->data = found->items + *at + HEAD;
    *at += (uint32_t)HEAD + item->head.len;
    return *at <= found->length;
}

static uint32_t measure(struct found *found, uint32_t items) {
    uint32_t at = 0;
    struct item item;
    found->length = WINDOW_MAX;
    while (items-- > 0 && search_next(found, &at, &item))
        ;
    return at < WINDOW_MAX ? at : WINDOW_MAX;
}

/* Search a subvolume's tree for as many items as fit into `size` bytes; 0 or a negated errno. */
int search(int fd, uint64_t subvolume, const struct range *range, struct found *found, uint32_t size) {
    found->args.key = (struct btrfs_ioctl_search_key){.tree_id = subvolume,
                                                      .min_objectid = range->first,
                                                      .min_type = range->type,
                                                      .min_offset = range->offset,
                                                      .max_objectid = range->last,
                                                      .max_type = range->last_type,
                                                      .max_offset = UINT64_MAX,
                                                      .max_transid = UINT64_MAX,
                                                      .nr_items = UINT32_MAX};
    found->args.buf_size = size;
    if (ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, &found->args))
        return -errno;
    found->length = measure(found, found->args.key.nr_items);
    return 0;
}

/* Whether nothing is left to find: an item more would have fitted. */
bool search_ended(const struct found *found, uint32_t size) {
    return !found->length || size - found->length > ITEM_MAX;
}

/* Note where each inode begins, and up to where nothing is missing. */
static void index_items(struct window *w) {
    uint64_t inode = w->first;
    uint32_t at = 0;
    struct item item;
    w->count = 0;
    for (uint32_t before = 0; search_next(&w->found, &at, &item); before = at) {
        inode = item.head.objectid;
        if (item.head.type == BTRFS_INODE_ITEM_KEY && w->count < PLACES_MAX)
            w->places[w->count++] = (struct place){.inode = inode, .at = before};
    }
    bool ended = search_ended(&w->found, w->size);
    w->last = ended ? BTRFS_LAST_FREE_OBJECTID : inode;
    w->partial = ended ? 0 : inode;
}

/* Fill a window of `size` bytes from inode `first` on. */
int window_read(struct window *w, int fd, uint64_t subvolume) {
    struct range range = {.first = w->first,
                          .last = BTRFS_LAST_FREE_OBJECTID,
                          .type = BTRFS_INODE_ITEM_KEY,
                          .last_type = UINT32_MAX};
    int error = search(fd, subvolume, &range, &w->found, w->size);
    if (!error)
        index_items(w);
    return error;
}

/* Where the items of an inode begin. */
bool window_find(const struct window *w, uint64_t inode, uint32_t *at) {
    uint32_t low = 0, high = w->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (w->places[middle].inode < inode)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == w->count || w->places[low].inode != inode)
        return false;
    *at = w->places[low].at;
    return true;
}
