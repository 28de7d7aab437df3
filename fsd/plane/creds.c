/* Whom a thread of the plane acts as. Credentials are per thread for the raw system calls used here.
   Capabilities stay when the filesystem uid changes (SECBIT_NO_SETUID_FIXUP): who may do what was
   decided by the kernel before it asked us, so all that matters is whom a new object belongs to. */
#include "plane.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define FSETID_BIT (1u << CAP_FSETID)
#define UNSET (~0u)

static void read_capabilities(struct worker *w) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    syscall(SYS_capget, &header, data);
    for (int i = 0; i < 2; i++) {
        w->effective[i] = data[i].effective;
        w->permitted[i] = data[i].permitted;
        w->inheritable[i] = data[i].inheritable;
    }
}

void creds_start(struct worker *w) {
    struct plane *p = w->plane;
    unsigned at = atomic_fetch_add(&p->own_tid_count, 1);
    if (at < OWN_TIDS)
        atomic_store(&p->own_tids[at], gettid());
    unshare(CLONE_FS); /* a umask of our own */
    prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS) | SECBIT_NO_SETUID_FIXUP);
    read_capabilities(w);
    w->fs_uid = w->plane->own_uid;
    w->fs_gid = w->plane->own_gid;
    w->fsetid = w->effective[0] & FSETID_BIT;
    w->mask = 0;
    umask(0);
}

static bool set_id(int call, uint32_t id) {
    syscall(call, id);
    return (uint32_t)syscall(call, UNSET) == id; /* an impossible id changes nothing and tells what is */
}

/* What is created from now on belongs to uid and gid. EPERM where the process may not act for others. */
int creds_act(struct worker *w, uint32_t uid, uint32_t gid, uint32_t mask) {
    if (w->fs_gid != gid && set_id(SYS_setfsgid, gid))
        w->fs_gid = gid;
    if (w->fs_uid != uid && set_id(SYS_setfsuid, uid))
        w->fs_uid = uid;
    if (w->fs_uid != uid || w->fs_gid != gid)
        return -EPERM;
    if (w->mask != mask)
        umask(w->mask = mask & 0777);
    return 0;
}

/* Without CAP_FSETID the filesystem takes set-user-ID and set-group-ID away by itself on a write. */
void creds_fsetid(struct worker *w, bool keep) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (keep == w->fsetid || !(w->effective[0] & FSETID_BIT))
        return;
    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct){w->effective[i], w->permitted[i], w->inheritable[i]};
    if (!keep)
        data[0].effective &= ~FSETID_BIT;
    if (!syscall(SYS_capset, &header, data))
        w->fsetid = keep;
}
