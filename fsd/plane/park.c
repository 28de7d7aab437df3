/* Requests that wait for Python: the first write of a burst, and whatever meets a new subvolume.
   Python gets to know through an eventfd, and answers each by its ticket. */
#include "plane.h"

#include <fnmatch.h>

#define EVENTS_MAX 4096
#define DYING_LOOK_NS 20000000

void signal_python(struct plane *p) {
    uint64_t one = 1;
    if (write(p->event_fd, &one, sizeof one) < 0)
        return; /* the counter is full, so it is readable */
}

/* Whether a request waits for what Python does about it. */
static bool is_waited_for(const fsd_event *event) {
    return event->kind != FSD_REFUSED && event->kind != FSD_OPENED;
}

/* Tell Python, once it is signalled. What nothing waits for is dropped when nobody fetches it. */
void event_push_locked(struct plane *p, const fsd_event *event) {
    bool full = !is_waited_for(event) && p->event_count >= EVENTS_MAX;
    struct event *item = full ? NULL : malloc(sizeof *item);
    if (!item)
        return;
    item->is = *event;
    item->next = NULL;
    *(p->last_event ? &p->last_event->next : &p->events) = item;
    p->last_event = item;
    p->event_count++;
}

void event_push(struct plane *p, const fsd_event *event) {
    pthread_mutex_lock(&p->park_lock);
    event_push_locked(p, event);
    pthread_mutex_unlock(&p->park_lock);
    signal_python(p);
}

/* Fetch the oldest event; 0 when there is none. */
int fsd_next_event(plane *p, fsd_event *event) {
    pthread_mutex_lock(&p->park_lock);
    struct event *item = p->events;
    if (item) {
        p->events = item->next;
        if (!p->events)
            p->last_event = NULL;
        p->event_count--;
    }
    pthread_mutex_unlock(&p->park_lock);
    if (!item)
        return 0;
    *event = item->is;
    free(item);
    return 1;
}

static void copy_name(char *to, const char *name) {
    size_t length = strnlen(name, LONGEST_NAME);
    memcpy(to, name, length);
    to[length] = 0;
}

static fsd_event describe(const struct request *r, int kind, const struct export *ex, const char *name,
                          const char *other) {
    fsd_event event = {.kind = kind,
                       .nodeid = r->in->nodeid,
                       .number = ex->number,
                       .opcode = r->in->opcode,
                       .pid = r->in->pid,
                       .uid = r->in->uid,
                       .gid = r->in->gid};
    if (name)
        copy_name(event.name[event.names++], name);
    if (other)
        copy_name(event.name[event.names++], other);
    return event;
}

static struct parked *parked_new(const struct request *r, const fsd_event *event) {
    struct parked *item = malloc(sizeof *item + r->in->len);
    if (!item)
        return NULL;
    *item = (struct parked){.event = *event, .length = r->in->len};
    memcpy(item->request, r->in, r->in->len);
    return item;
}

static void tell_locked(struct plane *p, struct parked *item) {
    item->along = false;
    prepared_tell_locked(p);
    event_push_locked(p, &item->event);
}

/* Wait for Python, or, if the event is about a mutation of an export, for a snapshot that was laid ready. */
static int park(struct request *r, const fsd_event *event, struct export *ex) {
    struct plane *p = r->plane;
    struct parked *item = parked_new(r, event);
    if (!item)
        return -ENOMEM;
    pthread_mutex_lock(&p->park_lock);
    bool passes = ex && !atomic_load(&ex->armed); /* the snapshot was taken just now */
    bool along = item->along = ex && !passes && prepared_covers_locked(p, ex);
    if (!passes) {
        item->ticket = item->event.ticket = ++p->next_ticket;
        item->next = p->parked;
        p->parked = item;
        along ? (void)pthread_cond_signal(&p->runnable_wake) : tell_locked(p, item);
    }
    pthread_mutex_unlock(&p->park_lock);
    if (passes) {
        free(item);
        return 0;
    }
    atomic_fetch_add(&p->parked_total, 1);
    if (!along)
        signal_python(p);
    return PARK;
}

int park_for_number(struct request *r, struct export *ex, const struct handle *root) {
    if (r->done)
        return -ESTALE;
    fsd_event event = describe(r, FSD_NUMBER, ex, NULL, NULL);
    event.handle_length = 4 + root->length;
    memcpy(event.handle, &root->type, 4);
    memcpy(event.handle + 4, root->bytes, root->length);
    return park(r, &event, NULL);
}

static bool is_noise(const struct plane *p, const char *name) {
    for (char **pattern = p->noise; name && *pattern; pattern++)
        if (!fnmatch(*pattern, name, 0))
            return true;
    return false;
}

static int refuse(struct request *r, const struct export *ex, const char *name, int error) {
    fsd_event event = describe(r, FSD_REFUSED, ex, name, NULL);
    event.error = error;
    atomic_fetch_add(&r->plane->refused, 1);
    event_push(r->plane, &event);
    return -error;
}

/* Whether a mutation has to wait: the export is armed, or its burst is over. */
static bool has_to_wait(struct export *ex, int64_t now) {
    int64_t mutated = atomic_load(&ex->mutated_ns);
    if (atomic_load(&ex->armed))
        return true;
    if (now >= mutated && now - mutated < atomic_load(&ex->quiet_ns) && now < atomic_load(&ex->until_ns)) {
        atomic_store(&ex->mutated_ns, now);
        return false;
    }
    atomic_store(&ex->armed, true);
    return true;
}

/* What comes before every mutation: 0 to go on, PARK when the request waits, EROFS. */
int gate(struct request *r, struct node *node, const char *name, const char *other) {
    struct export *ex = node->tree->export;
    if (ex->flags & FSD_READ_ONLY)
        return refuse(r, ex, name, EROFS);
    bool sealed = ex->flags & FSD_SEALED;
    if (!(ex->flags & FSD_GATED) || (!sealed && is_noise(r->plane, name) && (!other || is_noise(r->plane, other))))
        return 0;
    if (r->passed_gate && sealed)
        return refuse(r, ex, name, EROFS);
    if (r->passed_gate) {
        atomic_store(&ex->mutated_ns, epoch_ns());
        return 0;
    }
    if (!has_to_wait(ex, epoch_ns()))
        return 0;
    fsd_event event = describe(r, FSD_PARKED, ex, name, other);
    return park(r, &event, sealed ? NULL : ex);
}

/* The same for a mutation of a node itself, known by the name it was last met under. */
int gate_node(struct request *r, struct node *node) {
    char name[LONGEST_NAME + 1];
    node_name(r->plane, node, name);
    return gate(r, node, name[0] ? name : NULL, NULL);
}

int fsd_arm(plane *p, uint32_t number) {
    pthread_rwlock_rdlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    if (ex)
        atomic_store(&ex->armed, true);
    pthread_rwlock_unlock(&p->exports_lock);
    return ex ? 0 : -ENOENT;
}

/* Let mutations pass until none came for quiet_ns, or until_ns (since the epoch) is reached. */
int fsd_disarm(plane *p, uint32_t number, int64_t quiet_ns, int64_t until_ns) {
    pthread_rwlock_rdlock(&p->exports_lock);
    struct export *ex = export_find(p, number);
    if (ex) {
        atomic_store(&ex->quiet_ns, quiet_ns);
        atomic_store(&ex->until_ns, until_ns);
        atomic_store(&ex->mutated_ns, epoch_ns());
        atomic_store(&ex->armed, false);
    }
    pthread_rwlock_unlock(&p->exports_lock);
    return ex ? 0 : -ENOENT;
}

static struct parked *unpark_locked(struct plane *p, uint64_t ticket) {
    for (struct parked **at = &p->parked; *at; at = &(*at)->next) {
        struct parked *item = *at;
        if (item->ticket == ticket) {
            *at = item->next;
            return item;
        }
    }
    return NULL;
}

static void run_locked(struct plane *p, struct parked *item) {
    struct parked **end = &p->runnable;
    while (*end)
        end = &(*end)->next;
    item->next = NULL;
    *end = item;
    pthread_cond_signal(&p->runnable_wake);
}

/* Those who waited for what was laid ready, in the order they came. */
static struct parked *those_along_locked(struct plane *p) {
    struct parked *found = NULL;
    for (struct parked **at = &p->parked, *item; (item = *at);) {
        if (!item->along) {
            at = &item->next;
            continue;
        }
        *at = item->next;
        item->next = found;
        found = item;
    }
    return found;
}

/* Let them go on, or ask Python about each. */
void park_settle_locked(struct plane *p, bool go) {
    for (struct parked *item = those_along_locked(p), *next; item; item = next) {
        next = item->next;
        if (go) {
            run_locked(p, item);
            continue;
        }
        item->next = p->parked;
        p->parked = item;
        tell_locked(p, item);
    }
    if (!go)
        signal_python(p);
}

static uint64_t unique_of(const struct parked *item) {
    return ((const struct fuse_in_header *)item->request)->unique;
}

/* Answer a parked request: 0 lets it go on, a positive errno fails it. ENOENT: it was interrupted. */
int fsd_resume(plane *p, uint64_t ticket, int error) {
    pthread_mutex_lock(&p->park_lock);
    struct parked *item = unpark_locked(p, ticket);
    if (item && !error)
        run_locked(p, item);
    pthread_mutex_unlock(&p->park_lock);
    if (!item)
        return -ENOENT;
    if (error) {
        reply_error(p, unique_of(item), -error);
        free(item);
    }
    return 0;
}

/* Whether a request waits here. It goes on waiting unless its process is ending: system calls on files are not
   interrupted by signals, and programs do not expect it. */
bool park_interrupt(struct plane *p, uint64_t unique) {
    bool found = false;
    pthread_mutex_lock(&p->park_lock);
    for (struct parked *item = p->parked; item && !found; item = item->next)
        if (unique_of(item) == unique)
            found = item->interrupted = true;
    if (found)
        pthread_cond_signal(&p->runnable_wake);
    pthread_mutex_unlock(&p->park_lock);
    return found;
}

/* Let go who was interrupted and is ending; whether others were interrupted. The kernel reports no second
   signal, so this looks again and again. */
static bool end_dying_locked(struct plane *p) {
    bool left = false;
    for (struct parked **at = &p->parked, *item; (item = *at);) {
        if (item->interrupted && process_is_dying(((struct fuse_in_header *)item->request)->pid)) {
            *at = item->next;
            reply_error(p, unique_of(item), -EINTR);
            free(item);
            continue;
        }
        left |= item->interrupted;
        at = &item->next;
    }
    return left;
}

/* Sleep until there may be something to do. */
static void wait_for_runnable_locked(struct plane *p) {
    int64_t left = prepared_patience_locked(p);
    if (end_dying_locked(p) && (!left || left > DYING_LOOK_NS))
        left = DYING_LOOK_NS;
    if (!left) {
        pthread_cond_wait(&p->runnable_wake, &p->park_lock);
        return;
    }
    struct timespec until = after_ns(left);
    pthread_cond_timedwait(&p->runnable_wake, &p->park_lock, &until);
}

/* The thread that does what was parked. */
void park_run_ready(struct worker *w) {
    struct plane *p = w->plane;
    pthread_mutex_lock(&p->park_lock);
    while (!p->stopping) {
        struct parked *item = p->runnable;
        if (!item) {
            wait_for_runnable_locked(p);
            continue;
        }
        p->runnable = item->next;
        pthread_mutex_unlock(&p->park_lock);
        handle_request(w, item->request, item->length, true);
        free(item);
        pthread_mutex_lock(&p->park_lock);
    }
    pthread_mutex_unlock(&p->park_lock);
}

/* The places where what was denied to a process about an owner can be. */
static struct denied *denied_places(struct plane *p, uint32_t pid, uint64_t owner) {
    uint64_t mixed = (owner ^ pid) * 0x9e3779b97f4a7c15u >> 32;
    return p->denied + mixed % (DENIED_MAX / DENIED_WAYS) * DENIED_WAYS;
}

/* Refuse removals in an owner's exports to a process from now on; the oldest of a full row is forgotten. */
void fsd_deny(plane *p, uint32_t pid, uint64_t since, uint64_t owner) {
    pthread_mutex_lock(&p->park_lock);
    uint32_t order = atomic_load(&p->denied_count) + 1;
    struct denied *row = denied_places(p, pid, owner), *chosen = row;
    for (struct denied *at = row; at < row + DENIED_WAYS; at++) {
        if (at->order && at->pid == pid && at->owner == owner) {
            chosen = at;
            break;
        }
        if (at->order < chosen->order)
            chosen = at;
    }
    *chosen = (struct denied){pid, order ? order : 1, since, owner};
    atomic_store(&p->denied_count, order ? order : 1);
    pthread_mutex_unlock(&p->park_lock);
}

/* A process lists an object: it may be about to empty it. */
void deny_lister(struct plane *p, uint32_t pid, uint64_t owner) {
    if (pid && owner)
        fsd_deny(p, pid, process_started(pid), owner);
}

/* EPERM for a process that was denied removals below the owner of this node. */
int refuse_removal(struct request *r, struct node *node, const char *name) {
    struct plane *p = r->plane;
    struct export *ex = node->tree->export;
    bool found = false;
    if (!atomic_load(&p->denied_count))
        return 0;
    pthread_mutex_lock(&p->park_lock);
    uint64_t since = 0;
    struct denied *row = denied_places(p, r->in->pid, ex->owner);
    for (struct denied *at = row; at < row + DENIED_WAYS && !found; at++) {
        found = at->order && at->pid == r->in->pid && at->owner == ex->owner;
        since = at->started;
    }
    pthread_mutex_unlock(&p->park_lock);
    return found && process_started(r->in->pid) == since ? refuse(r, ex, name, EPERM) : 0;
}

/* `noise`: patterns of names whose changes count for nothing, one a line. */
int park_init(struct plane *p, const char *noise) {
    size_t lines = 1;
    pthread_mutex_init(&p->park_lock, NULL);
    pthread_cond_init(&p->runnable_wake, NULL);
    prepared_init(p);
    for (const char *at = noise; *at; at++)
        lines += *at == '\n';
    p->noise = calloc(lines + 1, sizeof *p->noise);
    p->noise_text = strdup(noise);
    if (!p->noise || !p->noise_text)
        return -ENOMEM;
    char *rest = p->noise_text, *line;
    size_t at = 0;
    while ((line = strsep(&rest, "\n")))
        if (*line)
            p->noise[at++] = line;
    return 0;
}

void park_free(struct plane *p) {
    fsd_event event;
    while (fsd_next_event(p, &event))
        ;
    for (struct parked *lists[] = {p->parked, p->runnable}, **list = lists; list < lists + 2; list++)
        for (struct parked *item = *list, *next; item; item = next) {
            next = item->next;
            free(item);
        }
    prepared_free(p);
    free(p->noise);
    free(p->noise_text);
    pthread_cond_destroy(&p->runnable_wake);
    pthread_mutex_destroy(&p->park_lock);
}
