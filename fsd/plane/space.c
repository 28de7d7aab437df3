/* How much room there is: that of the filesystem, or of a quota that binds the subvolume (statfs(2) of a
   container with a limit, as Ceph answers for a directory with one). The items are those of the quota tree,
   linux/btrfs_tree.h; its figures are of the last commit. */
#include "plane.h"

#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>

struct quota {
    uint64_t used, limit; /* bytes */
};

struct wanted {
    struct btrfs_ioctl_search_args_v2 args;
    struct {
        struct btrfs_ioctl_search_header head;
        unsigned char data[128];
    } found;
};

/* One item about the qgroup of a subvolume; false where quotas are off, or without the privilege to search. */
static bool quota_item(int fd, uint32_t type, uint64_t subvolume, void *item, size_t size) {
    struct wanted wanted = {.args = {.key = {.tree_id = BTRFS_QUOTA_TREE_OBJECTID,
                                             .min_type = type,
                                             .max_type = type,
                                             .min_offset = subvolume,
                                             .max_offset = subvolume,
                                             .max_transid = UINT64_MAX,
                                             .nr_items = 1},
                                     .buf_size = sizeof wanted.found}};
    if (ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, &wanted.args) || !wanted.args.key.nr_items || wanted.found.head.len < size)
        return false;
    memcpy(item, wanted.found.data, size);
    return true;
}

/* In full mode a limit counts what is shared as well; in simple mode there is no difference. */
static bool quota_of(const struct tree *tree, struct quota *quota) {
    struct btrfs_qgroup_limit_item limit;
    struct btrfs_qgroup_info_item info;
    int fd = tree->export->mount;
    if (tree->kind != BY_BTRFS_HANDLE ||
        !quota_item(fd, BTRFS_QGROUP_LIMIT_KEY, tree->subvolume, &limit, sizeof limit) ||
        !(le64toh(limit.flags) & BTRFS_QGROUP_LIMIT_MAX_RFER) ||
        !quota_item(fd, BTRFS_QGROUP_INFO_KEY, tree->subvolume, &info, sizeof info))
        return false;
    *quota = (struct quota){.used = le64toh(info.rfer), .limit = le64toh(limit.max_rfer)};
    return true;
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static void bind(struct statvfs *info, const struct quota *quota) {
    uint64_t left = quota->limit > quota->used ? quota->limit - quota->used : 0;
    info->f_blocks = smaller(info->f_blocks, quota->limit / info->f_frsize);
    info->f_bfree = smaller(info->f_bfree, left / info->f_frsize);
    info->f_bavail = smaller(info->f_bavail, left / info->f_frsize);
}

int do_statfs(struct request *r) {
    struct fuse_statfs_out *out = (struct fuse_statfs_out *)r->out;
    struct node *node = node_find(r->plane, r->in->nodeid);
    struct statvfs info;
    struct quota quota;
    if (!node)
        return -ESTALE;
    bool gone = atomic_load(&node->tree->export->gone);
    int result = gone ? -ESTALE : fstatvfs(node->tree->export->root, &info) ? -errno : 0;
    if (!result && quota_of(node->tree, &quota))
        bind(&info, &quota);
    node_put(r->plane, node);
    if (result)
        return result;
    memset(out, 0, sizeof *out);
    out->st = (struct fuse_kstatfs){.blocks = info.f_blocks,
                                    .bfree = info.f_bfree,
                                    .bavail = info.f_bavail,
                                    .files = info.f_files,
                                    .ffree = info.f_ffree,
                                    .bsize = (uint32_t)info.f_bsize,
                                    .namelen = (uint32_t)info.f_namemax,
                                    .frsize = (uint32_t)info.f_frsize};
    return sizeof *out;
}
