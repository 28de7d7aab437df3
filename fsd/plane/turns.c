/* Whose turn it is to read requests. One thread reads and answers as long as it gets on: every thread that
   sleeps on the device is woken for a request, mostly in vain, and takes the processor from the client. A
   watchman gives the turn to another thread when an answer takes longer than a tick. */
#include "plane.h"

#include <time.h>

#define TICK_NS 1000000
#define QUIET_TICKS 50 /* the watchman sleeps after so many ticks without a request */

/* To the tick of the kernel's clock. */
int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The same since the epoch. */
int64_t epoch_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* When a wait ends that lasts so long, for pthread_cond_timedwait. */
struct timespec after_ns(int64_t ns) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    ns += until.tv_nsec;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    return until;
}

void turns_init(struct plane *p) {
    pthread_mutex_init(&p->turn_lock, NULL);
    pthread_cond_init(&p->turn_free, NULL);
    pthread_cond_init(&p->watch_wake, NULL);
}

void turns_free(struct plane *p) {
    pthread_cond_destroy(&p->watch_wake);
    pthread_cond_destroy(&p->turn_free);
    pthread_mutex_destroy(&p->turn_lock);
}

/* Wake whoever waits for a turn, so that they see that it is over. */
void turns_stop(struct plane *p) {
    pthread_mutex_lock(&p->turn_lock);
    pthread_cond_broadcast(&p->turn_free);
    pthread_cond_broadcast(&p->watch_wake);
    pthread_mutex_unlock(&p->turn_lock);
}

bool turn_is(const struct worker *w) {
    return w->plane->reader == w;
}

/* Wait for a turn; false when the plane stops. */
bool turn_take(struct worker *w) {
    struct plane *p = w->plane;
    pthread_mutex_lock(&p->turn_lock);
    while (p->reader && !p->stopping)
        pthread_cond_wait(&p->turn_free, &p->turn_lock);
    if (!p->reader)
        p->reader = w;
    pthread_cond_signal(&p->watch_wake);
    pthread_mutex_unlock(&p->turn_lock);
    return !p->stopping;
}

/* For a thread that ends. */
void turn_leave(struct worker *w) {
    struct plane *p = w->plane;
    pthread_mutex_lock(&p->turn_lock);
    if (p->reader == w)
        p->reader = NULL;
    pthread_cond_signal(&p->turn_free);
    pthread_mutex_unlock(&p->turn_lock);
}

/* Around each sleep of the thread whose turn it is. */
void turn_sleeps(struct worker *w, bool sleeps) {
    struct plane *p = w->plane;
    atomic_store(&w->asleep, sleeps);
    if (sleeps || !atomic_load(&p->watch_asleep))
        return;
    pthread_mutex_lock(&p->turn_lock);
    pthread_cond_signal(&p->watch_wake);
    pthread_mutex_unlock(&p->turn_lock);
}

static bool nothing_to_watch(const struct plane *p) {
    return !p->reader || atomic_load(&p->reader->asleep);
}

static void watch_sleep(struct plane *p) {
    latency_rest(p);
    atomic_store(&p->watch_asleep, true);
    while (!p->stopping && nothing_to_watch(p))
        pthread_cond_wait(&p->watch_wake, &p->turn_lock);
    atomic_store(&p->watch_asleep, false);
}

static void tick(struct plane *p) {
    struct timespec time = {.tv_nsec = TICK_NS};
    pthread_mutex_unlock(&p->turn_lock);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&p->turn_lock);
}

/* The thread that lets others have a turn. */
void *watchman_main(void *argument) {
    struct plane *p = argument;
    unsigned quiet = 0;
    pthread_mutex_lock(&p->turn_lock);
    while (!p->stopping) {
        const struct worker *reader = p->reader;
        unsigned long before = reader ? atomic_load(&reader->handled) : 0;
        uint64_t requests = atomic_load(&p->requests);
        tick(p);
        latency_tick(p, atomic_load(&p->requests) - requests);
        quiet = nothing_to_watch(p) ? quiet + 1 : 0;
        if (quiet > QUIET_TICKS) {
            watch_sleep(p);
            quiet = 0;
        } else if (reader && p->reader == reader && atomic_load(&reader->handling) &&
                   atomic_load(&reader->handled) == before) {
            p->reader = NULL;
            pthread_cond_signal(&p->turn_free);
        }
    }
    pthread_mutex_unlock(&p->turn_lock);
    return NULL;
}
