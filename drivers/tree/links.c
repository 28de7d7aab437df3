/* Hard links: the first path of every inode with several names, in an open-addressed table. */

static struct link *link_slot(struct link *table, size_t size, dev_t dev, ino_t ino)
{
    size_t at = (size_t)((ino * 0x9E3779B97F4A7C15ull) ^ dev) & (size - 1);
    while (table[at].path && (table[at].ino != ino || table[at].dev != dev))
        at = (at + 1) & (size - 1);
    return &table[at];
}

static int links_grow(struct copy *c)
{
    size_t size = c->links_size ? c->links_size * 2 : 256;
    struct link *table = calloc(size, sizeof *table);
    if (!table)
        return -ENOMEM;
    for (size_t i = 0; i < c->links_size; i++)
        if (c->links[i].path)
            *link_slot(table, size, c->links[i].dev, c->links[i].ino) = c->links[i];
    free(c->links);
    c->links = table;
    c->links_size = size;
    return 0;
}

static int links_add(struct copy *c, const struct stat *st, const char *name)
{
    if (c->links_used * 2 >= c->links_size && links_grow(c) < 0)
        return -ENOMEM;
    struct link *slot = link_slot(c->links, c->links_size, st->st_dev, st->st_ino);
    size_t length = c->frames[c->depth - 1].path_length;
    char *path = malloc(length + strlen(name) + 1);
    if (!path)
        return -ENOMEM;
    memcpy(path, c->path, length);
    strcpy(path + length, name);
    *slot = (struct link){st->st_dev, st->st_ino, path};
    c->links_used++;
    return 0;
}

/* linkat for a path of any length: what exceeds PATH_MAX is walked by component. */
static int link_far(int top, const char *path, int dirfd, const char *name)
{
    char part[NAME_MAX + 1];
    int at = top, result;
    for (const char *slash; strlen(path) >= PATH_MAX && (slash = strchr(path, '/')); path = slash + 1) {
        memcpy(part, path, slash - path);
        part[slash - path] = 0;
        int next = openat(at, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (at != top)
            close(at);
        if (next < 0)
            return -errno;
        at = next;
    }
    result = linkat(at, path, dirfd, name, 0) < 0 ? -errno : 0;
    if (at != top)
        close(at);
    return result;
}

/* 1 if the inode was met before and is linked now, 0 if it is new and remembered. */
static int link_or_remember(struct copy *c, const struct stat *st, const char *name)
{
    if (c->links_size) {
        struct link *slot = link_slot(c->links, c->links_size, st->st_dev, st->st_ino);
        if (slot->path) {
            int result = link_far(c->top, slot->path, c->target, name);
            c->what = "link";
            c->links_made++;
            return result < 0 ? result : 1;
        }
    }
    c->what = "remember a hard link";
    return links_add(c, st, name);
}
