/* Owner, mode, extended attributes (ACLs among them) and times, in the order in which one survives the
   other: chown clears set-ID bits and capabilities, an ACL changes the mode, and all of them the ctime. */

/* What a user namespace or a file system without ACLs refuses, as cp -a leaves it out. */
static int refusal_is_harmless(const char *name, int error)
{
    if (error == EOPNOTSUPP)
        return !strncmp(name, "system.", 7) || !strncmp(name, "security.", 9);
    return error == EPERM && !strncmp(name, "security.", 9);
}

/* fd >= 0 names the file, else path does (below /proc/self/fd, never followed). */
static int copy_one_xattr(int in, int out, const char *in_path, const char *out_path, const char *name,
                          char *value)
{
    ssize_t size = in >= 0 ? fgetxattr(in, name, value, XATTR_MAX) : lgetxattr(in_path, name, value, XATTR_MAX);
    if (size < 0)
        return errno == ENODATA ? 0 : -errno;
    int result = out >= 0 ? fsetxattr(out, name, value, size, 0) : lsetxattr(out_path, name, value, size, 0);
    return result < 0 && !refusal_is_harmless(name, errno) ? -errno : 0;
}

static int copy_xattrs(struct copy *c, int in, int out, const char *in_path, const char *out_path)
{
    ssize_t length = in >= 0 ? flistxattr(in, c->block, XATTR_MAX) : llistxattr(in_path, c->block, XATTR_MAX);
    if (length < 0)
        return errno == EOPNOTSUPP ? 0 : failed(c, "listxattr");
    for (char *name = c->block; name < c->block + length; name += strlen(name) + 1) {
        int result = copy_one_xattr(in, out, in_path, out_path, name, c->block + XATTR_MAX);
        if (result < 0) {
            c->what = "setxattr";
            return result;
        }
    }
    return 0;
}

static int copy_attributes(struct copy *c, int in, int out, const struct stat *st)
{
    struct stat now;
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (fstat(out, &now) < 0)
        return failed(c, "stat");
    int owned = now.st_uid == st->st_uid && now.st_gid == st->st_gid;
    if (!owned && fchown(out, st->st_uid, st->st_gid) < 0)
        return failed(c, "chown");
    if ((!owned || now.st_mode != st->st_mode) && fchmod(out, st->st_mode & 07777) < 0)
        return failed(c, "chmod");
    int result = copy_xattrs(c, in, out, 0, 0);
    if (result < 0)
        return result;
    return futimens(out, times) < 0 ? failed(c, "utimens") : 0;
}

/* The same for what cannot be opened: symbolic links, devices, FIFOs, sockets. */
static int copy_attributes_at(struct copy *c, const char *name, const struct stat *st)
{
    char in[64 + NAME_MAX], out[64 + NAME_MAX];
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    snprintf(in, sizeof in, "/proc/self/fd/%d/%s", c->source, name);
    snprintf(out, sizeof out, "/proc/self/fd/%d/%s", c->target, name);
    if (fchownat(c->target, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return failed(c, "chown");
    if (!S_ISLNK(st->st_mode) && fchmodat(c->target, name, st->st_mode & 07777, 0) < 0)
        return failed(c, "chmod");
    int result = copy_xattrs(c, -1, -1, in, out);
    if (result < 0)
        return result;
    return utimensat(c->target, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? failed(c, "utimens") : 0;
}
