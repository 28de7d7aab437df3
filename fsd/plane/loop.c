/* The threads that read requests. The one whose turn it is (turns.c) asks again and again before it sleeps,
   because a wake-up costs more than most answers; how long depends on how often it was worth it. */
#include "plane.h"

#include <poll.h>
#include <signal.h>

#define SPIN_MIN 40

static handler *const handlers[] = {
    [FUSE_LOOKUP] = do_lookup,
    [FUSE_GETATTR] = do_getattr,
    [FUSE_SETATTR] = do_setattr,
    [FUSE_READLINK] = do_readlink,
    [FUSE_SYMLINK] = do_symlink,
    [FUSE_MKNOD] = do_mknod,
    [FUSE_MKDIR] = do_mkdir,
    [FUSE_UNLINK] = do_unlink,
    [FUSE_RMDIR] = do_rmdir,
    [FUSE_RENAME] = do_rename,
    [FUSE_LINK] = do_link,
    [FUSE_OPEN] = do_open,
    [FUSE_READ] = do_read,
    [FUSE_WRITE] = do_write,
    [FUSE_STATFS] = do_statfs,
    [FUSE_RELEASE] = do_release,
    [FUSE_FSYNC] = do_fsync,
    [FUSE_SETXATTR] = do_setxattr,
    [FUSE_GETXATTR] = do_getxattr,
    [FUSE_LISTXATTR] = do_listxattr,
    [FUSE_REMOVEXATTR] = do_removexattr,
    [FUSE_FLUSH] = do_flush,
    [FUSE_OPENDIR] = do_opendir,
    [FUSE_READDIR] = do_readdir,
    [FUSE_RELEASEDIR] = do_releasedir,
    [FUSE_FSYNCDIR] = do_fsyncdir,
    [FUSE_CREATE] = do_create,
    [FUSE_IOCTL] = do_ioctl,
    [FUSE_POLL] = do_poll,
    [FUSE_FALLOCATE] = do_fallocate,
    [FUSE_READDIRPLUS] = do_readdirplus,
    [FUSE_RENAME2] = do_rename2,
    [FUSE_LSEEK] = do_lseek,
    [FUSE_COPY_FILE_RANGE] = do_copy_file_range,
    [FUSE_SYNCFS] = do_syncfs,
    [FUSE_TMPFILE] = do_tmpfile,
    [PLANE_STATX] = do_statx,
};
#define HANDLERS (sizeof handlers / sizeof *handlers)

static int ours(struct request *r) {
    uint32_t opcode = r->in->opcode;
    return opcode < HANDLERS && handlers[opcode] ? handlers[opcode](r) : -ENOSYS;
}

/* Requests that name two nodes, of which one is Python's: they cannot be in one tree. */
static bool crosses(const struct request *r) {
    uint64_t other = 0;
    switch (r->in->opcode) {
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_LINK: /* all three begin with the id */
        if (r->length < sizeof other)
            return false;
        memcpy(&other, r->arg, sizeof other);
        return (other ^ r->in->nodeid) & OURS;
    case FUSE_COPY_FILE_RANGE:
        if (r->length < sizeof(struct fuse_copy_file_range_in))
            return false;
        other = ((const struct fuse_copy_file_range_in *)r->arg)->nodeid_out;
        return (other ^ r->in->nodeid) & OURS;
    default:
        return false;
    }
}

static int forget_many(struct request *r) {
    struct fuse_batch_forget_in *in = (struct fuse_batch_forget_in *)r->arg;
    struct fuse_forget_one *one = (struct fuse_forget_one *)(in + 1);
    uint32_t kept = 0;
    if (r->length < sizeof *in || in->count > (r->length - sizeof *in) / sizeof *one)
        return NO_REPLY;
    for (uint32_t i = 0; i < in->count; i++)
        if (one[i].nodeid & OURS)
            node_forget(r->plane, one[i].nodeid, one[i].nlookup);
        else if ((one[i].nlookup = published_forget(r->plane, one[i].nodeid, one[i].nlookup)))
            one[kept++] = one[i];
    in->count = kept;
    r->in->len = (uint32_t)(sizeof *r->in + sizeof *in + kept * sizeof *one);
    if (kept)
        forward(r->plane, r->in, r->in->len);
    return NO_REPLY;
}

static int forget(struct request *r) {
    struct fuse_forget_in *in = (struct fuse_forget_in *)take(r, sizeof *in);
    if (!in)
        return NO_REPLY;
    if (r->in->nodeid & OURS)
        node_forget(r->plane, r->in->nodeid, in->nlookup);
    else if ((in->nlookup = published_forget(r->plane, r->in->nodeid, in->nlookup)))
        forward(r->plane, r->in, r->in->len);
    return NO_REPLY;
}

static int interrupt(struct request *r) {
    const struct fuse_interrupt_in *in = take(r, sizeof *in);
    if (in && !park_interrupt(r->plane, in->unique) && forward_pending(r->plane, in->unique))
        forward(r->plane, r->in, r->in->len);
    return NO_REPLY;
}

static bool asks_for_error_text(const struct request *r) {
    size_t head = sizeof(struct fuse_getxattr_in);
    static const char name[] = "user.fsd.error";
    return r->in->opcode == FUSE_GETXATTR && r->length >= head + sizeof name &&
           !memcmp(r->arg + head, name, sizeof name);
}

int dispatch(struct request *r) {
    switch (r->in->opcode) {
    case FUSE_FORGET:
        return forget(r);
    case FUSE_BATCH_FORGET:
        return forget_many(r);
    case FUSE_INTERRUPT:
        return interrupt(r);
    default:
        break;
    }
    if (crosses(r))
        return -EXDEV;
    if (r->in->nodeid & OURS && !asks_for_error_text(r))
        return ours(r);
    int result = r->in->nodeid & OURS ? FORWARD : synthetic(r);
    if (result != FORWARD)
        return result;
    forward(r->plane, r->in, r->in->len);
    return NO_REPLY;
}

/* Do one request and answer it. `message` may be changed. */
void handle_request(struct worker *w, unsigned char *message, size_t length, bool passed_gate) {
    struct fuse_in_header *in = (struct fuse_in_header *)message;
    struct plane *p = w->plane;
    if (length < sizeof *in || in->len != length) {
        atomic_fetch_add(&p->malformed, 1);
        return;
    }
    struct request r = {.plane = p,
                        .worker = w,
                        .in = in,
                        .arg = message + sizeof *in,
                        .length = length - sizeof *in,
                        .out = w->output + sizeof(struct fuse_out_header),
                        .changes = atomic_load(&p->changes),
                        .passed_gate = passed_gate};
    uint64_t unique = in->unique;
    atomic_fetch_add(&p->operations[in->opcode < 64 ? in->opcode : 0], 1);
    int result = dispatch(&r);
    if (result == PARK || result == NO_REPLY)
        return;
    if (in->opcode == FUSE_RELEASE && result < 0)
        result = 0;
    reply_send(p, unique, w->output, result);
}

/* Length of the request read, 0 when there is none just now, -1 when the mount is gone. */
static ssize_t read_request(struct worker *w) {
    ssize_t got = read(w->plane->device, w->input, BUFFER_SIZE);
    if (got > 0)
        return got;
    if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOENT))
        return 0;
    return -1; /* ENODEV: unmounted; ECONNABORTED; a closed socket */
}

/* Ask again for a while. */
static ssize_t spin(struct worker *w) {
    struct plane *p = w->plane;
    ssize_t got = 0;
    for (int tries = 0; tries < w->spin && !got; tries++)
        got = read_request(w);
    if (got > 0)
        w->spin = w->spin * 2 < p->spin_max ? w->spin * 2 : p->spin_max;
    else
        w->spin = w->spin * 7 / 8 > SPIN_MIN ? w->spin * 7 / 8 : SPIN_MIN;
    atomic_fetch_add(&p->spins, 1);
    return got;
}

/* Sleep until there may be a request; false when the plane stops. */
static bool sleep_for_request(struct worker *w) {
    struct pollfd wait[] = {{w->plane->device, POLLIN, 0}, {w->plane->stop_fd, POLLIN, 0}};
    atomic_fetch_add(&w->plane->polls, 1);
    turn_sleeps(w, true);
    int found = poll(wait, 2, -1);
    turn_sleeps(w, false);
    return (found >= 0 || errno == EINTR) && !wait[1].revents;
}

static ssize_t next_request(struct worker *w) {
    ssize_t got = read_request(w);
    if (!got && w->spin)
        got = spin(w);
    while (!got && !w->plane->stopping) {
        if (!sleep_for_request(w))
            return -1;
        got = read_request(w);
    }
    return got;
}

static int worker_init(struct worker *w, struct plane *p) {
    *w = (struct worker){.plane = p, .spin = p->spin_max};
    w->input = aligned_alloc(4096, BUFFER_SIZE);
    w->output = aligned_alloc(4096, BUFFER_SIZE);
    if (!w->input || !w->output)
        return -1;
    creds_start(w);
    return 0;
}

static void worker_free(struct worker *w) {
    free(w->input);
    free(w->output);
}

/* The mount is gone: tell Python once. */
void plane_ended(struct plane *p) {
    fsd_event event = {.kind = FSD_ENDED};
    bool before = atomic_exchange(&p->ended, true);
    if (!before && !p->stopping)
        event_push(p, &event);
}

/* Answer requests as long as it is this thread's turn; false when the mount is gone. */
static bool serve_turn(struct worker *w) {
    while (turn_is(w) && !w->plane->stopping) {
        ssize_t length = next_request(w);
        if (length < 0)
            return false;
        if (!length)
            continue;
        atomic_fetch_add(&w->plane->requests, 1);
        atomic_store(&w->handling, true);
        handle_request(w, w->input, (size_t)length, false);
        atomic_store(&w->handling, false);
        atomic_fetch_add(&w->handled, 1);
    }
    return true;
}

static void *reader_main(void *argument) {
    struct worker w;
    struct plane *p = argument;
    if (!worker_init(&w, p))
        while (turn_take(&w) && serve_turn(&w))
            ;
    turn_leave(&w);
    worker_free(&w);
    plane_ended(p);
    return NULL;
}

static void *runner_main(void *argument) {
    struct worker w;
    if (!worker_init(&w, argument))
        park_run_ready(&w);
    worker_free(&w);
    return NULL;
}

/* Every thread of the plane blocks all signals: they are Python's. */
int thread_start(pthread_t *thread, void *(*main)(void *), void *argument) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = -pthread_create(thread, &attributes, main, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

/* What there is one thread of, beside the readers. */
static void *(*const helpers[])(void *) = {runner_main,   notifier_main, namer_main,
                                           watchman_main, taker_main,    pump_main};
#define HELPERS ((int)(sizeof helpers / sizeof *helpers))

int loop_start(struct plane *p) {
    int error = 0, wanted = p->threads + HELPERS;
    p->workers = calloc((size_t)wanted, sizeof *p->workers);
    if (!p->workers)
        return -ENOMEM;
    while (p->started < wanted && !error) {
        int helper = p->started - p->threads;
        error = thread_start(&p->workers[p->started], helper < 0 ? reader_main : helpers[helper], p);
        p->started += !error;
    }
    return error;
}

void loop_stop(struct plane *p) {
    uint64_t many = 1u << 20;
    pthread_mutex_lock(&p->park_lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->runnable_wake);
    pthread_cond_broadcast(&p->taking.wake);
    pthread_mutex_unlock(&p->park_lock);
    notify_wake(p);
    turns_stop(p);
    if (write(p->stop_fd, &many, sizeof many) < 0)
        return;
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i], NULL);
    watches_stop(p);
    free(p->workers);
}
