/* What there is to know of the processes that make requests: proc(5). */
#include "plane.h"

#include <signal.h>
#include <stdio.h>

#define STARTED_FIELD 22 /* of /proc/PID/stat */
#define PENDING_FIELD 31

/* A number in /proc/PID/stat, by its place there; false when there is no such process. */
static bool process_field(uint32_t pid, int place, unsigned long long *value) {
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[length < 0 ? 0 : length] = 0;
    const char *at = strrchr(text, ')'); /* the end of field 2 */
    for (int field = 2; at && field < place; field++)
        at = strchr(at + 1, ' ');
    return at && sscanf(at + 1, " %llu", value) == 1;
}

/* Start in clock ticks, which tells a reused pid apart; 0 when there is no such process. */
uint64_t process_started(uint32_t pid) {
    unsigned long long ticks;
    return process_field(pid, STARTED_FIELD, &ticks) ? ticks : 0;
}

/* Whether a thread is gone, or about to be: the kernel gives SIGKILL to each of a process that ends. */
bool process_is_dying(uint32_t pid) {
    unsigned long long pending;
    return !process_field(pid, PENDING_FIELD, &pending) || pending & 1ULL << (SIGKILL - 1);
}
