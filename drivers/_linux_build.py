"""Builds ``drivers._linux``: system calls the standard library lacks (cffi, API mode).

Mounts (``mount``, ``open_tree``, ``mount_setattr``), confined path walks (``openat2``), exchange renames,
file handles and extent maps. Every function returns ``-errno`` on failure, and cffi releases the GIL
around each. What headers older than the interface lack is declared here from the kernel's user-space
ABI, which does not change.
"""

from __future__ import annotations

from cffi import FFI

SOURCE = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/fs.h>
#include <linux/fiemap.h>
#include <linux/openat2.h>

#ifdef SYS_mount_setattr
#define HAVE_MOUNT_SETATTR 1
#else
#define HAVE_MOUNT_SETATTR 0
#define SYS_mount_setattr 442
#endif

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 0x00000004
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* The layout is that of struct mount_attr (mount_setattr(2)); glibc and kernel headers that both
   declare it cannot be included together. */
struct fsd_mount_attr { uint64_t attr_set, attr_clr, propagation, userns_fd; };
#define FSD_MOUNT_ATTR_RDONLY 0x00000001
#define FSD_MOUNT_ATTR_IDMAP 0x00100000

#define RESULT(call) do { long r_ = (call); return r_ < 0 ? -errno : r_; } while (0)

static long linux_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how;
    memset(&how, 0, sizeof how);
    how.flags = flags | O_CLOEXEC;
    how.mode = mode;
    how.resolve = resolve;
    RESULT(syscall(SYS_openat2, dirfd, path, &how, sizeof how));
}

static long linux_renameat2(int old_fd, const char *old_path, int new_fd, const char *new_path,
                            unsigned flags)
{
    RESULT(syscall(SYS_renameat2, old_fd, old_path, new_fd, new_path, flags));
}

static long linux_statfs_type(int fd)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return -errno;
    return (long)(uint32_t)fs.f_type;
}

static long linux_is_mount_root(int dirfd, const char *path)
{
    struct statx stx;
    if (statx(dirfd, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &stx) < 0)
        return -errno;
    return (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

static long linux_known_file(const char *path, unsigned *major, unsigned *minor, uint64_t *inode)
{
    struct statx stx;
    if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_INO, &stx) < 0)
        return -errno;
    *major = stx.stx_dev_major;
    *minor = stx.stx_dev_minor;
    *inode = stx.stx_ino;
    return stx.stx_mode & S_IFMT;
}

static long linux_mount(const char *source, const char *target, const char *type, unsigned long flags,
                        const char *data)
{
    RESULT(mount(source, target, type, flags, data));
}

static long linux_umount(const char *target, int flags) { RESULT(umount2(target, flags)); }

static long linux_syncfs(int fd) { RESULT(syncfs(fd)); }

static long linux_start_writeback(int fd) { RESULT(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)); }

static long linux_open_tree(int dirfd, const char *path, unsigned flags)
{
    RESULT(syscall(SYS_open_tree, dirfd, path, flags | O_CLOEXEC));
}

static long linux_move_mount(int tree_fd, const char *target)
{
    RESULT(syscall(SYS_move_mount, tree_fd, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH));
}

static long linux_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t userns_fd)
{
    struct fsd_mount_attr attr = {set, clear, 0, userns_fd};
    RESULT(syscall(SYS_mount_setattr, fd, "", flags | AT_EMPTY_PATH, &attr, sizeof attr));
}

/* A child in a new user namespace that waits until the write end of the pipe is closed. It only makes
   system calls, so that it is safe to start from a process with many threads. */
static long linux_userns_child(int *release_fd)
{
    int ends[2];
    char byte;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        close(ends[1]);
        while (read(ends[0], &byte, 1) < 0 && errno == EINTR)
            ;
        _exit(0);
    }
    int saved = errno;
    close(ends[0]);
    if (pid < 0) {
        close(ends[1]);
        return -saved;
    }
    *release_fd = ends[1];
    return pid;
}

/* Writes the kernel's file handle to buffer; returns its length, the mount ID goes to mount_id. */
static long linux_file_handle(int dirfd, const char *path, int flags, void *buffer, unsigned size, int *type,
                              int *mount_id)
{
    char storage[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    struct file_handle *handle = (struct file_handle *)storage;
    handle->handle_bytes = MAX_HANDLE_SZ;
    if (name_to_handle_at(dirfd, path, handle, mount_id, flags) < 0)
        return -errno;
    if (handle->handle_bytes > size)
        return -EOVERFLOW;
    memcpy(buffer, handle->f_handle, handle->handle_bytes);
    *type = handle->handle_type;
    return handle->handle_bytes;
}

static long linux_open_handle(int mount_fd, int type, const void *data, unsigned size, int flags)
{
    char storage[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    struct file_handle *handle = (struct file_handle *)storage;
    if (size > MAX_HANDLE_SZ)
        return -EINVAL;
    handle->handle_bytes = size;
    handle->handle_type = type;
    memcpy(handle->f_handle, data, size);
    RESULT(open_by_handle_at(mount_fd, handle, flags | O_CLOEXEC));
}

static long linux_clone_file(int target_fd, int source_fd) { RESULT(ioctl(target_fd, FICLONE, source_fd)); }

/* Next extents of a file from *start on: (logical, physical, length, flags) quadruples. */
static long linux_fiemap(int fd, uint64_t start, uint64_t *out, unsigned count)
{
    char storage[sizeof(struct fiemap) + 64 * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)storage;
    memset(map, 0, sizeof *map);
    map->fm_start = start;
    map->fm_length = FIEMAP_MAX_OFFSET - start;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = count > 64 ? 64 : count;
    if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
        return -errno;
    for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
        out[4 * i] = map->fm_extents[i].fe_logical;
        out[4 * i + 1] = map->fm_extents[i].fe_physical;
        out[4 * i + 2] = map->fm_extents[i].fe_length;
        out[4 * i + 3] = map->fm_extents[i].fe_flags;
    }
    return map->fm_mapped_extents;
}
"""

DECLARATIONS = r"""
#define HAVE_MOUNT_SETATTR ...
#define OPEN_TREE_CLONE ...
#define AT_RECURSIVE ...
#define AT_FDCWD ...
#define AT_EMPTY_PATH ...
#define MAX_HANDLE_SZ ...
#define FSD_MOUNT_ATTR_RDONLY ...
#define FSD_MOUNT_ATTR_IDMAP ...
#define RESOLVE_NO_XDEV ...
#define RESOLVE_NO_MAGICLINKS ...
#define RESOLVE_NO_SYMLINKS ...
#define RESOLVE_BENEATH ...
#define RESOLVE_IN_ROOT ...
#define RENAME_NOREPLACE ...
#define RENAME_EXCHANGE ...
#define MS_RDONLY ...
#define MS_BIND ...
#define MS_REC ...
#define MS_PRIVATE ...
#define MS_REMOUNT ...
#define MNT_DETACH ...
#define FS_IOC_FIEMAP ...
#define FIEMAP_EXTENT_LAST ...
#define FIEMAP_EXTENT_SHARED ...
#define FIEMAP_EXTENT_DATA_INLINE ...
#define FIEMAP_EXTENT_ENCODED ...
#define FIEMAP_EXTENT_UNKNOWN ...

static long linux_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
static long linux_renameat2(int old_fd, const char *old_path, int new_fd, const char *new_path,
                            unsigned flags);
static long linux_statfs_type(int fd);
static long linux_is_mount_root(int dirfd, const char *path);
static long linux_known_file(const char *path, unsigned *major, unsigned *minor, uint64_t *inode);
static long linux_mount(const char *source, const char *target, const char *type, unsigned long flags,
                        const char *data);
static long linux_umount(const char *target, int flags);
static long linux_syncfs(int fd);
static long linux_start_writeback(int fd);
static long linux_open_tree(int dirfd, const char *path, unsigned flags);
static long linux_move_mount(int tree_fd, const char *target);
static long linux_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t userns_fd);
static long linux_userns_child(int *release_fd);
static long linux_file_handle(int dirfd, const char *path, int flags, void *buffer, unsigned size, int *type,
                              int *mount_id);
static long linux_open_handle(int mount_fd, int type, const void *data, unsigned size, int flags);
static long linux_clone_file(int target_fd, int source_fd);
static long linux_fiemap(int fd, uint64_t start, uint64_t *out, unsigned count);
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source("drivers._linux", SOURCE, extra_compile_args=["-O2"])
