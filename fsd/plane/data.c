/* Data of open files, where the kernel does not read and write the real file itself. */
#include "plane.h"

#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>

int do_read(struct request *r) {
    const struct fuse_read_in *in = take(r, sizeof *in);
    struct file *file = in ? file_get(r->plane, in->fh) : NULL;
    size_t done = 0, size = in && in->size < DATA_MAX ? in->size : DATA_MAX;
    ssize_t got = 1;
    if (!file)
        return in ? -EBADF : -EINVAL;
    while (done < size && (got = pread(file->fd, r->out + done, size - done, (off_t)(in->offset + done))) > 0)
        done += (size_t)got;
    int error = errno;
    file_put(r->plane, file);
    return got < 0 && !done ? -error : (int)done;
}

static ssize_t write_all(int fd, const unsigned char *data, size_t size, off_t offset) {
    size_t done = 0;
    while (done < size) {
        ssize_t put = pwrite(fd, data + done, size - done, offset + (off_t)done);
        if (put <= 0)
            return done ? (ssize_t)done : put ? -errno : -EIO; /* the next write meets the error */
        done += (size_t)put;
    }
    return (ssize_t)done;
}

int do_write(struct request *r) {
    const struct fuse_write_in *in = take(r, sizeof *in);
    struct fuse_write_out *out = (struct fuse_write_out *)r->out;
    if (!in || in->size > r->length - sizeof *in)
        return -EINVAL;
    struct file *file = file_get(r->plane, in->fh);
    if (!file)
        return -EBADF;
    creds_fsetid(r->worker, !(in->write_flags & FUSE_WRITE_KILL_SUIDGID));
    ssize_t done = write_all(file->fd, r->arg + sizeof *in, in->size, (off_t)in->offset);
    file_put(r->plane, file);
    if (done < 0)
        return (int)done;
    out->size = (uint32_t)done;
    out->padding = 0;
    return sizeof *out;
}

int do_fsync(struct request *r) {
    const struct fuse_fsync_in *in = take(r, sizeof *in);
    struct file *file = in ? file_get(r->plane, in->fh) : NULL;
    if (!file)
        return in ? -EBADF : -EINVAL;
    int result = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(file->fd) : fsync(file->fd);
    result = result ? -errno : 0;
    file_put(r->plane, file);
    return result;
}

int do_fallocate(struct request *r) {
    const struct fuse_fallocate_in *in = take(r, sizeof *in);
    struct file *file = in ? file_get(r->plane, in->fh) : NULL;
    if (!file)
        return in ? -EBADF : -EINVAL;
    int result = gate_node(r, file->node);
    if (!result) {
        creds_fsetid(r->worker, r->in->uid == 0);
        result = fallocate(file->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) ? -errno : 0;
    }
    file_put(r->plane, file);
    return result;
}

int do_lseek(struct request *r) {
    const struct fuse_lseek_in *in = take(r, sizeof *in);
    struct fuse_lseek_out *out = (struct fuse_lseek_out *)r->out;
    struct file *file = in ? file_get(r->plane, in->fh) : NULL;
    if (!file)
        return in ? -EBADF : -EINVAL;
    off_t found = lseek(file->fd, (off_t)in->offset, (int)in->whence);
    int error = errno;
    file_put(r->plane, file);
    if (found < 0)
        return -error;
    out->offset = (uint64_t)found;
    return sizeof *out;
}

int do_copy_file_range(struct request *r) {
    const struct fuse_copy_file_range_in *in = take(r, sizeof *in);
    struct fuse_write_out *out = (struct fuse_write_out *)r->out;
    struct file *from = in ? file_get(r->plane, in->fh_in) : NULL;
    struct file *to = in ? file_get(r->plane, in->fh_out) : NULL;
    int result = !in ? -EINVAL : from && to ? 0 : -EXDEV;
    if (!result) {
        off_t here = (off_t)in->off_in, there = (off_t)in->off_out;
        size_t length = in->len < (1u << 30) ? in->len : 1u << 30;
        creds_fsetid(r->worker, r->in->uid == 0);
        ssize_t done = copy_file_range(from->fd, &here, to->fd, &there, length, 0);
        result = done < 0 ? -errno : 0;
        out->size = done < 0 ? 0 : (uint32_t)done;
        out->padding = 0;
    }
    if (from)
        file_put(r->plane, from);
    if (to)
        file_put(r->plane, to);
    return result ? result : (int)sizeof *out;
}

struct ioctl_answer {
    struct fuse_ioctl_out head;
    unsigned char data[sizeof(struct fsxattr)];
};

static int ioctl_fd(struct request *r, const struct fuse_ioctl_in *in, struct file **file) {
    struct node *node;
    *file = in->flags & FUSE_IOCTL_DIR ? NULL : file_get(r->plane, in->fh);
    if (*file)
        return (*file)->fd;
    if (!(node = node_find(r->plane, r->in->nodeid)))
        return -ESTALE;
    int fd = node->directory ? node_open(r->plane, node, O_RDONLY | O_DIRECTORY) : -EBADF;
    node_put(r->plane, node);
    return fd;
}

static int gate_ioctl(struct request *r, bool sets) {
    struct node *node = sets ? node_find(r->plane, r->in->nodeid) : NULL;
    if (!node)
        return sets ? -ESTALE : 0;
    int result = gate_node(r, node);
    node_put(r->plane, node);
    return result;
}

/* Inode flags and project attributes, which lsattr(1) and chattr(1) use; anything else is refused. */
int do_ioctl(struct request *r) {
    const struct fuse_ioctl_in *in = take(r, sizeof *in);
    struct ioctl_answer *out = (struct ioctl_answer *)r->out;
    struct file *file = NULL;
    if (!in)
        return -EINVAL;
    bool sets = in->cmd == FS_IOC_SETFLAGS || in->cmd == FS_IOC_FSSETXATTR;
    bool whole = in->cmd == FS_IOC_FSGETXATTR || in->cmd == FS_IOC_FSSETXATTR;
    size_t size = whole ? sizeof(struct fsxattr) : sizeof(int);
    if (!sets && !whole && in->cmd != FS_IOC_GETFLAGS)
        return -ENOTTY;
    if ((sets && (in->in_size < size || r->length - sizeof *in < size)) || (!sets && in->out_size < size))
        return -EINVAL;
    memset(out, 0, sizeof *out);
    if (sets)
        memcpy(out->data, in + 1, size);
    int result = gate_ioctl(r, sets), fd = result ? result : ioctl_fd(r, in, &file);
    if (fd >= 0)
        result = ioctl(fd, in->cmd, out->data) ? -errno : 0;
    if (file)
        file_put(r->plane, file);
    else if (fd >= 0)
        close(fd);
    if (fd < 0 || result)
        return fd < 0 ? fd : result;
    return (int)(sizeof out->head + (sets ? 0 : size));
}

int do_poll(struct request *r) {
    struct fuse_poll_out *out = (struct fuse_poll_out *)r->out;
    *out = (struct fuse_poll_out){.revents = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM};
    return sizeof *out;
}
