/* Keeping processors awake while requests come one after another. A client that waits for its answer leaves its
   processor idle, and in a virtual machine an idle processor is given back to the host: waking it takes longer than
   the answer. So as long as there is such a burst, the kernel is asked to let idle processors poll (the CPU latency
   QoS, Documentation/power/pm_qos_interface.rst). Only guests gain enough to pay for it: elsewhere nothing is asked. */
#include "plane.h"

#define QOS "/dev/cpu_dma_latency"
#define DRIVER "/sys/devices/system/cpu/cpuidle/current_driver"
#define GUEST "haltpoll" /* the idle driver of guests; it polls when no latency is allowed */
#define NO_LIMIT 2000000000 /* microseconds: the kernel's own default */
#define BURST 4             /* requests in a tick of the watchman */
#define CALM_TICKS 20       /* the burst is over after so many with fewer */

static bool in_a_guest(void) {
    char driver[32] = "";
    int fd = open(DRIVER, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, driver, sizeof driver - 1);
    if (fd >= 0)
        close(fd);
    return length > 0 && !strncmp(driver, GUEST, strlen(GUEST));
}

static void allow(struct plane *p, int32_t microseconds) {
    if (write(p->latency_fd, &microseconds, sizeof microseconds) < 0)
        return; /* it is a wish */
    p->awake = microseconds == 0;
    p->awakenings += p->awake;
}

/* Without the privilege there is nothing to keep. */
void latency_start(struct plane *p, bool wanted) {
    p->latency_fd = wanted && in_a_guest() ? open(QOS, O_WRONLY | O_CLOEXEC) : -1; /* open, it limits nothing yet */
}

/* The watchman tells how many requests came in its last tick. */
void latency_tick(struct plane *p, uint64_t requests) {
    if (p->latency_fd < 0)
        return;
    p->calm_ticks = requests < BURST ? p->calm_ticks + 1 : 0;
    if (!p->awake && !p->calm_ticks)
        allow(p, 0);
    else if (p->awake && p->calm_ticks > CALM_TICKS)
        allow(p, NO_LIMIT);
}

/* Nothing comes any more: he sleeps. */
void latency_rest(struct plane *p) {
    if (p->awake)
        allow(p, NO_LIMIT);
}

/* The kernel forgets the wish. */
void latency_stop(struct plane *p) {
    if (p->latency_fd >= 0)
        close(p->latency_fd);
}
