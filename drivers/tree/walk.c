static int open_source(struct copy *c, const char *name, int flags)
{
    flags |= O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = openat(c->source, name, flags | (c->noatime ? O_NOATIME : 0));
    if (fd < 0 && errno == EPERM && c->noatime)
        fd = openat(c->source, name, flags);
    return fd;
}

static int copy_open_file(struct copy *c, int in, const char *name, const struct stat *st)
{
    int out = openat(c->target, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, st->st_mode & 0777);
    if (out < 0)
        return failed(c, "create");
    int result = copy_content(c, in, out, st->st_size);
    if (result == 0)
        result = copy_attributes(c, in, out, st);
    if (close(out) < 0 && result == 0)
        return failed(c, "close");
    c->files++;
    return result;
}

static int copy_file(struct copy *c, const char *name)
{
    struct stat st;
    int in = open_source(c, name, 0), result = 0;
    if (in < 0)
        return failed(c, "open");
    if (fstat(in, &st) < 0)
        result = failed(c, "stat");
    else if (!S_ISREG(st.st_mode)) {
        errno = ESTALE;
        result = failed(c, "open");
    } else if (st.st_nlink > 1)
        result = link_or_remember(c, &st, name);
    if (result == 0)
        result = copy_open_file(c, in, name, &st);
    close(in);
    return result < 0 ? result : 0;
}

static int make_node(struct copy *c, const char *name, const struct stat *st)
{
    if (!S_ISLNK(st->st_mode))
        return mknodat(c->target, name, st->st_mode, st->st_rdev) < 0 ? failed(c, "mknod") : 0;
    ssize_t length = readlinkat(c->source, name, c->block, CHUNK - 1);
    if (length < 0)
        return failed(c, "readlink");
    c->block[length] = 0;
    return symlinkat(c->block, c->target, name) < 0 ? failed(c, "symlink") : 0;
}

static int copy_node(struct copy *c, const char *name, const struct stat *st)
{
    int result = st->st_nlink > 1 ? link_or_remember(c, st, name) : 0;
    if (result != 0)
        return result < 0 ? result : 0;
    result = make_node(c, name, st);
    c->files++;
    return result < 0 ? result : copy_attributes_at(c, name, st);
}

/* Reads all names of the source directory into the frame. */
static int read_names(struct copy *c, struct frame *f)
{
    size_t room = 0;
    for (;;) {
        long got = syscall(SYS_getdents64, c->source, c->block, CHUNK);
        if (got <= 0)
            return got < 0 ? failed(c, "readdir") : 0;
        if (grow((void **)&f->names, &room, f->size + got, 1) < 0)
            return -ENOMEM;
        for (char *at = c->block; at < c->block + got; at += *(uint16_t *)(at + 16)) {
            const char *name = at + 19; /* struct linux_dirent64: ino, off, reclen, type, name */
            if (!strcmp(name, ".") || !strcmp(name, ".."))
                continue;
            f->names[f->size++] = at[18];
            memcpy(f->names + f->size, name, strlen(name) + 1);
            f->size += strlen(name) + 1;
        }
    }
}

static int push(struct copy *c, const char *name)
{
    struct stat target;
    size_t before = c->depth ? c->frames[c->depth - 1].path_length : 0, length = strlen(name);
    if (grow((void **)&c->frames, &c->frames_size, c->depth + 1, sizeof *c->frames) < 0 ||
        grow((void **)&c->path, &c->path_size, before + length + 2, 1) < 0)
        return -ENOMEM;
    struct frame *f = &c->frames[c->depth++];
    memset(f, 0, sizeof *f);
    if (fstat(c->source, &f->source) < 0 || fstat(c->target, &target) < 0)
        return failed(c, "stat");
    f->target_dev = target.st_dev;
    f->target_ino = target.st_ino;
    f->path_length = before + length + (length ? 1 : 0);
    memcpy(c->path + before, name, length);
    c->path[before + length] = length ? '/' : 0;
    c->directories++;
    return read_names(c, f);
}

static void enter(struct copy *c, int source, int target)
{
    close(c->source);
    close(c->target);
    c->source = source;
    c->target = target;
}

static int descend(struct copy *c, const char *name)
{
    int source = open_source(c, name, O_DIRECTORY);
    if (source < 0)
        return failed(c, "open");
    int target = mkdirat(c->target, name, 0700) < 0 ? -1 : openat(c->target, name,
        O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0) {
        int result = failed(c, "mkdir");
        close(source);
        return result;
    }
    enter(c, source, target);
    return push(c, name);
}

static int came_back(const struct frame *f, int source, int target)
{
    struct stat s, t;
    return fstat(source, &s) == 0 && fstat(target, &t) == 0 && s.st_ino == f->source.st_ino &&
           s.st_dev == f->source.st_dev && t.st_ino == f->target_ino && t.st_dev == f->target_dev;
}

/* Sets the finished directory's attributes and returns to the one above. */
static int ascend(struct copy *c)
{
    struct frame *f = &c->frames[c->depth - 1];
    c->name[0] = 0;
    int result = copy_attributes(c, c->source, c->target, &f->source);
    if (result < 0)
        return result;
    free(f->names);
    f->names = 0;
    if (--c->depth == 0)
        return 0;
    int source = open_source(c, "..", O_DIRECTORY);
    int target = openat(c->target, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (source < 0 || target < 0 || !came_back(&c->frames[c->depth - 1], source, target)) {
        errno = ESTALE;
        result = failed(c, "return from a directory");
    }
    enter(c, source, target);
    return result;
}

static int copy_entry(struct copy *c, int type, const char *name)
{
    struct stat st;
    snprintf(c->name, sizeof c->name, "%s", name);
    if (type == 8) /* DT_REG */
        return copy_file(c, name);
    if (fstatat(c->source, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return failed(c, "stat");
    if (S_ISDIR(st.st_mode))
        return descend(c, name);
    return S_ISREG(st.st_mode) ? copy_file(c, name) : copy_node(c, name, &st);
}

static int walk(struct copy *c)
{
    int result = push(c, "");
    while (result == 0 && c->depth) {
        struct frame *f = &c->frames[c->depth - 1];
        if (f->next >= f->size) {
            result = ascend(c);
            continue;
        }
        const char *entry = f->names + f->next;
        f->next += strlen(entry + 1) + 2;
        result = copy_entry(c, entry[0], entry + 1);
    }
    return result;
}

static void release(struct copy *c)
{
    for (size_t i = 0; i < c->depth; i++)
        free(c->frames[i].names);
    for (size_t i = 0; i < c->links_size; i++)
        free(c->links[i].path);
    free(c->frames);
    free(c->links);
    free(c->path);
    free(c->block);
    if (c->source >= 0)
        close(c->source);
    if (c->target >= 0)
        close(c->target);
}

static int copy_tree(int source, int target, uint64_t counts[4], char *where, size_t where_size, const char **what)
{
    struct copy c = {.clone = 1, .noatime = 1, .top = target, .what = "start"};
    c.block = malloc(CHUNK);
    c.source = openat(source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    c.target = openat(target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = !c.block ? -ENOMEM : c.source < 0 || c.target < 0 ? -errno : walk(&c);
    counts[0] = c.files;
    counts[1] = c.directories;
    counts[2] = c.links_made;
    counts[3] = c.bytes;
    int length = c.depth ? (int)c.frames[c.depth - 1].path_length : 0;
    snprintf(where, where_size, "%.*s%s", length, c.path ? c.path : "", c.name);
    *what = c.what;
    release(&c);
    return result;
}

/* Copies one entry alone: a file with its content, or a directory with its attributes and nothing in it. */
static int copy_alone(struct copy *c, const char *name)
{
    struct stat st;
    if (fstatat(c->source, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return failed(c, "stat");
    if (S_ISDIR(st.st_mode)) {
        int result = descend(c, name);
        return result < 0 ? result : copy_attributes(c, c->source, c->target, &st);
    }
    if (!S_ISREG(st.st_mode)) {
        int result = make_node(c, name, &st);
        return result < 0 ? result : copy_attributes_at(c, name, &st);
    }
    int in = open_source(c, name, 0);
    if (in < 0)
        return failed(c, "open");
    int result = copy_open_file(c, in, name, &st);
    close(in);
    return result;
}

static int copy_entry_alone(int source, int target, const char *name, const char **what)
{
    struct copy c = {.clone = 1, .noatime = 1, .top = target, .what = "start"};
    c.block = malloc(CHUNK);
    c.source = openat(source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    c.target = openat(target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = !c.block ? -ENOMEM : c.source < 0 || c.target < 0 ? -errno : copy_alone(&c, name);
    *what = c.what;
    release(&c);
    return result;
}

/* Whether directory entries come with their types, which overlayfs needs (readdir(3) DT_UNKNOWN). */
static int directory_has_types(int fd)
{
    char block[4096];
    long got = syscall(SYS_getdents64, fd, block, sizeof block);
    if (got <= 0)
        return got < 0 ? -errno : 0;
    return block[18] != 0; /* d_type of the first entry; there is always "." */
}
