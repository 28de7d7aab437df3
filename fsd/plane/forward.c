/* What belongs to Python: requests go to pyfuse3 through a socket pair, answers come back and are
   corrected where they show an export's root or negotiate what the plane can do. */
#include "plane.h"

#include <linux/capability.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define SPLICING (FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ)
#define COMPAT_SETXATTR 8

/* -- requests under way --------------------------------------------------------------------------- */

static struct pending **bucket(struct plane *p, uint64_t unique) {
    return &p->pending[unique / 2 % PENDING_BUCKETS]; /* uniques are even */
}

static bool has_answer(uint32_t opcode) {
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

static void note(struct plane *p, const struct fuse_in_header *in) {
    struct pending *item = calloc(1, sizeof *item);
    if (!item)
        return;
    item->unique = in->unique;
    item->opcode = in->opcode;
    pthread_mutex_lock(&p->pending_lock);
    item->next = *bucket(p, in->unique);
    *bucket(p, in->unique) = item;
    pthread_mutex_unlock(&p->pending_lock);
}

static struct pending *answered(struct plane *p, uint64_t unique) {
    pthread_mutex_lock(&p->pending_lock);
    struct pending **at = bucket(p, unique);
    while (*at && (*at)->unique != unique)
        at = &(*at)->next;
    struct pending *item = *at;
    if (item)
        *at = item->next;
    pthread_mutex_unlock(&p->pending_lock);
    return item;
}

bool forward_pending(struct plane *p, uint64_t unique) {
    pthread_mutex_lock(&p->pending_lock);
    struct pending *item = *bucket(p, unique);
    while (item && item->unique != unique)
        item = item->next;
    pthread_mutex_unlock(&p->pending_lock);
    return item;
}

/* -- to Python ------------------------------------------------------------------------------------ */

static void enqueue_locked(struct plane *p, const void *message, size_t length) {
    struct queued *item = malloc(sizeof *item + length);
    uint64_t one = 1;
    if (!item)
        return;
    item->next = NULL;
    item->length = length;
    memcpy(item->bytes, message, length);
    *(p->last_queued ? &p->last_queued->next : &p->queue) = item;
    p->last_queued = item;
    if (write(p->pump_fd, &one, sizeof one) < 0)
        return;
}

/* In order, and without waiting: what does not fit into the socket now is sent by the pump. */
static void send_on(struct plane *p, const void *message, size_t length) {
    pthread_mutex_lock(&p->queue_lock);
    if (p->queue || send(p->socket, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        enqueue_locked(p, message, length);
    pthread_mutex_unlock(&p->queue_lock);
}

static void flush_queue(struct plane *p) {
    pthread_mutex_lock(&p->queue_lock);
    while (p->queue) {
        struct queued *item = p->queue;
        if (send(p->socket, item->bytes, item->length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EAGAIN)
            break;
        p->queue = item->next;
        if (!p->queue)
            p->last_queued = NULL;
        free(item);
    }
    pthread_mutex_unlock(&p->queue_lock);
}

/* Remember what the kernel offers; libfuse must not splice from a socket. */
static void adapt_init(struct plane *p, unsigned char *message, size_t length) {
    struct fuse_init_in *in = (struct fuse_init_in *)(message + sizeof(struct fuse_in_header));
    if (length < sizeof(struct fuse_in_header) + offsetof(struct fuse_init_in, flags2))
        return;
    p->kernel_minor = in->minor;
    p->offered = in->flags;
    if (in->flags & FUSE_INIT_EXT && length >= sizeof(struct fuse_in_header) + sizeof *in)
        p->offered |= (uint64_t)in->flags2 << 32;
    in->flags &= ~(uint32_t)SPLICING;
}

/* libfuse was not told of FUSE_SETXATTR_EXT: leave out the two words it adds. */
static size_t adapt_setxattr(unsigned char *message, size_t length) {
    size_t head = sizeof(struct fuse_in_header), extra = sizeof(struct fuse_setxattr_in) - COMPAT_SETXATTR;
    if (length < head + sizeof(struct fuse_setxattr_in))
        return length;
    memmove(message + head + COMPAT_SETXATTR, message + head + sizeof(struct fuse_setxattr_in),
            length - head - sizeof(struct fuse_setxattr_in));
    ((struct fuse_in_header *)message)->len = (uint32_t)(length - extra);
    return length - extra;
}

/* Hand a request to Python; it is changed where libfuse would not understand it. */
void forward(struct plane *p, void *message, size_t length) {
    struct fuse_in_header *in = message;
    if (has_answer(in->opcode))
        note(p, in);
    if (in->opcode == FUSE_INIT)
        adapt_init(p, message, length);
    else if (in->opcode == FUSE_SETXATTR)
        length = adapt_setxattr(message, length);
    else if (in->opcode == PLANE_STATX)
        length = statx_asked(message, length);
    atomic_fetch_add(&p->forwarded, 1);
    atomic_fetch_add(&p->asked[in->opcode < 64 ? in->opcode : 0], 1);
    send_on(p, message, length);
}

/* -- from Python ---------------------------------------------------------------------------------- */

static bool stat_root(struct plane *p, uint64_t id, struct statx *info, struct node **node) {
    struct fdref ref;
    *node = node_find(p, id);
    if (!*node)
        return false;
    bool known = fd_of(p, *node, &ref) >= 0 && !stat_fd(ref.fd, info);
    fd_release(p, &ref);
    if (!known)
        node_put(p, *node);
    return known;
}

/* An entry that shows an export's root gets its real attributes, and the lookup is counted here. How
   long the name may be kept stays Python's business: another directory may take its place. */
static bool correct_entry(struct plane *p, struct fuse_entry_out *entry) {
    struct statx info;
    struct node *node;
    uint64_t valid = entry->entry_valid;
    unsigned changes = atomic_load(&p->changes);
    uint32_t rest = entry->entry_valid_nsec;
    if (!(entry->nodeid & OURS))
        return true;
    if (!stat_root(p, entry->nodeid, &info, &node))
        return false;
    put_entry(p, changes, node, &info, entry);
    entry->entry_valid = valid;
    entry->entry_valid_nsec = rest;
    node_count(p, node);
    node_put(p, node);
    return true;
}

static void correct_listing(struct plane *p, unsigned char *data, size_t length) {
    for (size_t at = 0; at + FUSE_NAME_OFFSET_DIRENTPLUS <= length;) {
        struct fuse_direntplus *entry = (struct fuse_direntplus *)(data + at);
        if (entry->entry_out.nodeid & OURS) {
            entry->dirent.ino = entry->entry_out.nodeid;
            if (!correct_entry(p, &entry->entry_out))
                memset(&entry->entry_out, 0, sizeof entry->entry_out);
        }
        at += FUSE_DIRENTPLUS_SIZE(entry);
    }
}

#define ALWAYS                                                                                                    \
    (FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS | FUSE_CACHE_SYMLINKS | FUSE_DO_READDIRPLUS | FUSE_POSIX_ACL |         \
     FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_DONT_MASK | FUSE_ATOMIC_O_TRUNC | FUSE_ASYNC_READ |       \
     FUSE_AUTO_INVAL_DATA | FUSE_ASYNC_DIO | FUSE_HAS_IOCTL_DIR | FUSE_BIG_WRITES | FUSE_INIT_EXT)
#define NEVER (FUSE_WRITEBACK_CACHE | FUSE_READDIRPLUS_AUTO | FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT | \
               FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | SPLICING | FUSE_EXPLICIT_INVAL_DATA)

/* The kernel takes real files to read and write from nobody without CAP_SYS_ADMIN. */
static bool may_pass_files(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    return !syscall(SYS_capget, &header, data) && data[0].effective & 1u << CAP_SYS_ADMIN;
}

/* Put what the plane can do into the answer to INIT, as far as the kernel offered it. */
static size_t correct_init(struct plane *p, unsigned char *message, size_t length) {
    struct fuse_out_header *header = (struct fuse_out_header *)message;
    struct plane_init_out *out = (struct plane_init_out *)(header + 1);
    if (header->error || length < sizeof *header + FUSE_COMPAT_22_INIT_OUT_SIZE)
        return length;
    memset(message + length, 0, length < sizeof *header + sizeof *out ? sizeof *header + sizeof *out - length : 0);
    uint64_t offered = p->offered;
    bool passes = p->want_passthrough && offered & FUSE_PASSTHROUGH && p->kernel_minor >= PLANE_MINOR && may_pass_files();
    out->minor = p->kernel_minor < PLANE_MINOR ? p->kernel_minor : PLANE_MINOR;
    out->flags = (uint32_t)((out->flags | ALWAYS) & offered & ~(uint64_t)NEVER);
    out->flags2 = passes ? (uint32_t)(FUSE_PASSTHROUGH >> 32) : 0;
    out->max_stack_depth = passes ? 1 : 0;
    out->max_pages = (uint16_t)p->max_pages;
    out->max_write = p->max_pages * 4096;
    out->time_gran = 1;
    out->max_background = 64;
    out->congestion_threshold = 48;
    p->minor = out->minor;
    atomic_store(&p->passthrough, passes);
    header->len = sizeof *header + sizeof *out;
    return header->len;
}

static uint32_t opcode_of_answer(struct plane *p, uint64_t unique) {
    struct pending *item = answered(p, unique);
    uint32_t opcode = item ? item->opcode : 0;
    free(item);
    return opcode;
}

static size_t correct(struct plane *p, unsigned char *message, size_t length, uint32_t opcode) {
    struct fuse_out_header *header = (struct fuse_out_header *)message;
    if (header->error)
        return length;
    if (opcode == FUSE_INIT)
        return correct_init(p, message, length);
    if (opcode == PLANE_STATX)
        return statx_answered(message, length);
    if (opcode == FUSE_OPENDIR && length >= sizeof *header + sizeof(struct fuse_open_out))
        synthetic_opened((struct fuse_open_out *)(header + 1));
    if (opcode == FUSE_READDIRPLUS)
        correct_listing(p, message + sizeof *header, length - sizeof *header);
    else if ((opcode == FUSE_LOOKUP || opcode == FUSE_MKDIR) &&
             length >= sizeof *header + sizeof(struct fuse_entry_out) &&
             !correct_entry(p, (struct fuse_entry_out *)(header + 1))) {
        header->error = -ESTALE;
        header->len = sizeof *header;
        return sizeof *header;
    }
    return length;
}

/* Python tells the kernel what a command outdated before it answers the FLUSH that ran it, and so it has
   to arrive. Answers to requests that hold a directory's lock must not wait: a notice may need it. */
static bool in_order(struct plane *p, const void *message, size_t length, uint32_t opcode) {
    return opcode == FUSE_FLUSH && notify_later(p, message, length);
}

static bool pump_one(struct plane *p, unsigned char *buffer) {
    ssize_t length = recv(p->socket, buffer, BUFFER_SIZE, MSG_DONTWAIT);
    if (length <= 0)
        return length < 0 && (errno == EAGAIN || errno == EINTR);
    if ((size_t)length < sizeof(struct fuse_out_header))
        return true;
    uint64_t unique = ((struct fuse_out_header *)buffer)->unique;
    if (!unique) {
        notify_later(p, buffer, (size_t)length); /* without memory: what the kernel keeps expires by itself */
        return true;
    }
    uint32_t opcode = opcode_of_answer(p, unique);
    size_t corrected = correct(p, buffer, (size_t)length, opcode);
    if (!in_order(p, buffer, corrected, opcode))
        device_write(p, buffer, corrected);
    return true;
}

/* The thread that brings Python's answers back and sends what did not fit at once. */
void *pump_main(void *argument) {
    struct plane *p = argument;
    unsigned char *buffer = malloc(BUFFER_SIZE + sizeof(struct plane_init_out));
    uint64_t count;
    bool open = buffer;
    while (open && !p->stopping) {
        struct pollfd wait[] = {{p->socket, (short)(POLLIN | (p->queue ? POLLOUT : 0)), 0},
                                {p->pump_fd, POLLIN, 0},
                                {p->stop_fd, POLLIN, 0}};
        if (poll(wait, 3, -1) < 0 && errno != EINTR)
            break;
        if (wait[2].revents)
            break;
        if (wait[1].revents && read(p->pump_fd, &count, sizeof count) < 0)
            break;
        if (wait[1].revents || wait[0].revents & POLLOUT)
            flush_queue(p);
        if (wait[0].revents & (POLLIN | POLLHUP | POLLERR))
            open = pump_one(p, buffer);
    }
    free(buffer);
    return NULL;
}

void forward_free(struct plane *p) {
    for (int i = 0; i < PENDING_BUCKETS; i++)
        for (struct pending *item = p->pending[i], *next; item; item = next) {
            next = item->next;
            free(item);
        }
    for (struct queued *item = p->queue, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    pthread_mutex_destroy(&p->pending_lock);
    pthread_mutex_destroy(&p->queue_lock);
}
