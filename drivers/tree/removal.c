/* Removal of a tree below an open directory: a stack of directory streams' names, as above. */

struct level { char *names; size_t size, next; dev_t dev; ino_t ino; };

struct removal {
    int fd;
    struct level *levels;
    size_t depth, levels_size;
    char *block;
};

static int read_level(struct removal *r, struct level *l)
{
    size_t room = 0;
    for (;;) {
        long got = syscall(SYS_getdents64, r->fd, r->block, CHUNK);
        if (got <= 0)
            return got < 0 ? -errno : 0;
        if (grow((void **)&l->names, &room, l->size + got, 1) < 0)
            return -ENOMEM;
        for (char *at = r->block; at < r->block + got; at += *(uint16_t *)(at + 16)) {
            const char *name = at + 19;
            if (!strcmp(name, ".") || !strcmp(name, ".."))
                continue;
            memcpy(l->names + l->size, name, strlen(name) + 1);
            l->size += strlen(name) + 1;
        }
    }
}

static int removal_enter(struct removal *r, int parent, const char *name)
{
    struct stat st;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (r->fd >= 0)
        close(r->fd);
    r->fd = fd;
    if (fstat(fd, &st) < 0 ||
        grow((void **)&r->levels, &r->levels_size, r->depth + 1, sizeof *r->levels) < 0)
        return -errno;
    struct level *l = &r->levels[r->depth++];
    *l = (struct level){.dev = st.st_dev, .ino = st.st_ino};
    return read_level(r, l);
}

static int removal_leave(struct removal *r)
{
    struct stat st;
    free(r->levels[--r->depth].names);
    int fd = openat(r->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    close(r->fd);
    r->fd = fd;
    if (r->depth == 0)
        return 0;
    struct level *l = &r->levels[r->depth - 1];
    if (fstat(fd, &st) < 0 || st.st_ino != l->ino || st.st_dev != l->dev)
        return -ESTALE;
    const char *name = l->names + l->next; /* the directory just emptied */
    l->next += strlen(name) + 1;
    return unlinkat(fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT ? -errno : 0;
}

static int removal_step(struct removal *r)
{
    struct level *l = &r->levels[r->depth - 1];
    if (l->next >= l->size)
        return removal_leave(r);
    const char *name = l->names + l->next;
    if (unlinkat(r->fd, name, 0) == 0 || errno == ENOENT) {
        l->next += strlen(name) + 1;
        return 0;
    }
    int refused = -errno;
    if (refused != -EISDIR && refused != -EPERM)
        return refused;
    int result = removal_enter(r, r->fd, name);
    return result == -ENOTDIR ? refused : result; /* EPERM may be about a file too, one that is immutable */
}

static int remove_tree(int parent, const char *name)
{
    struct removal r = {.fd = -1, .block = malloc(CHUNK)};
    int result = r.block ? removal_enter(&r, parent, name) : -ENOMEM;
    while (result == 0 && r.depth)
        result = removal_step(&r);
    while (r.depth)
        free(r.levels[--r.depth].names);
    if (r.fd >= 0)
        close(r.fd);
    free(r.levels);
    free(r.block);
    if (result == 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0)
        result = -errno;
    return result;
}
