static int cannot_share(int error)
{
    return error == EOPNOTSUPP || error == ENOTTY || error == EXDEV || error == ENOSYS || error == EINVAL;
}

static int write_all(int out, const char *bytes, size_t length, off_t at)
{
    while (length) {
        ssize_t done = pwrite(out, bytes, length, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        bytes += done;
        at += done;
        length -= done;
    }
    return 0;
}

static int read_and_write(struct copy *c, int in, int out, off_t at, off_t end)
{
    while (at < end) {
        ssize_t got = pread(in, c->block, end - at < CHUNK ? end - at : CHUNK, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) /* 0: the file became shorter meanwhile */
            return got < 0 ? -errno : 0;
        int result = write_all(out, c->block, got, at);
        if (result < 0)
            return result;
        at += got;
    }
    return 0;
}

static int copy_range(struct copy *c, int in, int out, off_t at, off_t end)
{
    while (at < end) {
        loff_t from = at, to = at;
        ssize_t done = copy_file_range(in, &from, out, &to, end - at, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && !cannot_share(errno))
            return -errno;
        if (done <= 0)
            return read_and_write(c, in, out, at, end);
        at += done;
    }
    return 0;
}

/* Copies what SEEK_DATA finds, so that holes stay holes. */
static int copy_extents(struct copy *c, int in, int out, off_t size)
{
    for (off_t at = 0; at < size;) {
        off_t start = lseek(in, at, SEEK_DATA);
        if (start < 0 && errno == ENXIO)
            break;
        off_t end = start < 0 ? -1 : lseek(in, start, SEEK_HOLE);
        if (end < 0) {
            start = at;
            end = size;
        }
        int result = copy_range(c, in, out, start, end);
        if (result < 0)
            return result;
        at = end;
    }
    return ftruncate(out, size) < 0 ? -errno : 0;
}

static int copy_content(struct copy *c, int in, int out, off_t size)
{
    if (size == 0)
        return 0;
    c->bytes += size;
    c->what = "copy";
    if (c->clone) {
        if (ioctl(out, FICLONE, in) == 0)
            return 0;
        if (!cannot_share(errno))
            return -errno;
        if (errno != EINVAL) /* EINVAL is about one file: swap, or copy-on-write switched off */
            c->clone = 0;
    }
    return copy_extents(c, in, out, size);
}
