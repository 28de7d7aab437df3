/* Inside the data plane: what its parts share. No function here is called with Python's GIL in mind. */
#ifndef FSD_PLANE_H
#define FSD_PLANE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "face_c.h"
#include "proto.h"

#define OURS (1ULL << 62)
#define INODE_BITS 40
#define INODE_MASK ((1ULL << INODE_BITS) - 1)
#define STAND_IN (1ULL << (INODE_BITS - 1)) /* in an inode number: made up for a subvolume a snapshot left out */
#define NUMBER_MAX (1u << 21)
#define LONGEST_NAME 255
#define DATA_MAX (1u << 20)
#define BUFFER_SIZE (DATA_MAX + 8192)
#define FOREVER (10ULL * 365 * 86400)
#define SHARDS 64
#define PATH_MAX_TEXT 4096
#define BTRFS_FID 0x4d      /* FILEID_BTRFS_WITHOUT_PARENT, include/linux/exportfs.h */
#define BTRFS_FID_LENGTH 20 /* objectid, subvolume, generation */

/* What a handler returns instead of an answer's length or a negated errno. */
#define NO_REPLY (-10001) /* the answer is on its way, or there is none */
#define PARK (-10002)     /* the request waits for Python */
#define FORWARD (-10003)  /* the request is Python's */

/* In a handle of Python's: the kernel may keep the listing, and what it kept before is right. */
#define KEEPS_LISTING (1ULL << 62)
#define KEPT_LISTING (1ULL << 61)
#define LISTING_END (1ULL << 30) /* in an offset: nothing follows */
/* A handle of a published directory is this and its node id; an offset in its listing holds the serial number of
   what is listed above SERIAL_SHIFT. */
#define PUBLISHED_HANDLE (1ULL << 63)
#define SERIAL_SHIFT 32
#define PUBLISHED_BUCKETS (1u << 15)
#define FOLLOWED_MAX 64
#define FAILED_MAX 64 /* nodes Python has a text about, which is their only extended attribute */

/* A file handle, laid out as struct file_handle. */
struct handle {
    uint32_t length; /* of bytes */
    int32_t type;
    unsigned char bytes[128];
};

enum tree_kind { BY_BTRFS_HANDLE = FSD_BTRFS_HANDLES, BY_HANDLE = FSD_HANDLES, BY_NAME = FSD_NAMES };

/* Whether what was written to a tree before it was shown is on the disk, where scan.c finds it. */
enum settling { UNSETTLED, SETTLING, SETTLED };

/* A directory tree shown in the mount. */
struct export {
    struct export *next;
    uint32_t number; /* of its root's tree */
    _Atomic uint32_t flags;
    _Atomic uint64_t owner;
    uint64_t mount_id;
    int root;    /* O_PATH, in a private copy of the mount where that is allowed */
    int mount;   /* the same, open for real, as open_by_handle_at(2) wants it; -1 where that is not allowed */
    int userns;  /* while it is made: the user namespace whose mapping owners are shown through; 0 for none */
    bool mapped; /* shown so */
    bool cloned; /* nothing can be mounted below root */
    bool live;
    atomic_bool gone; /* deleted: nothing but open files can be reached any more */
    atomic_bool armed;
    atomic_uint epoch; /* counts what it has shown */
    atomic_long quiet_ns, until_ns, mutated_ns;
    fsd_preparation *_Atomic prepared; /* of the next snapshot; NULL: that is Python's */
    atomic_long nodes;
    struct tree *trees;
    struct node *pinned_root;
};

/* One filesystem or btrfs subvolume in an export. */
struct tree {
    struct tree *next;
    struct export *export;
    uint32_t number;
    enum tree_kind kind;
    uint64_t device, other_device; /* other: after an exchange */
    uint64_t subvolume;
    uint32_t block;          /* what space is counted in, bytes */
    _Atomic uint32_t serial; /* another one when it means another subvolume */
    atomic_int settled;      /* enum settling */
    struct handle root;
    struct watch *watch;  /* tells of changes made elsewhere; under the lock of the watches */
    struct tree *watched; /* the next in its row there */
    atomic_bool told;     /* watch is set: the kernel may keep what it is answered */
    atomic_bool rests;    /* it was, and will be when somebody asks about the tree */
};

/* How an inode's data is open just now. */
struct data_state {
    uint32_t cached, passed;
    int32_t backing;
};

struct node {
    uint64_t id;
    struct node *next;
    struct tree *tree;
    struct handle *handle; /* BY_HANDLE trees */
    struct node *parent;   /* nodes that can only be reached by name; under parents_lock */
    char *name;
    struct data_state *data;
    uint64_t seen; /* digest of the state of the data the kernel may have cached */
    uint64_t lookups;
    uint32_t generation;
    atomic_uint refs;
    int slot; /* under slots_lock */
    _Atomic int pin;
    bool directory;
    bool by_name; /* has a parent */
    bool root;     /* of an export */
    bool detached; /* no longer in the table */
    atomic_bool settled; /* a small file nobody changes, opened before: its data was stored */
    atomic_uint writers; /* open files of the mount that may write */
    atomic_bool written; /* somebody elsewhere wrote to it and has it open still */
};

struct shard {
    pthread_mutex_t lock, storing;
    struct node **buckets;
    size_t size, count;
};

struct slot {
    int fd;
    uint32_t users;
    bool used;
    struct node *node;
    pthread_mutex_t reading;
};

/* A descriptor of a node for the length of a request; give it back with fd_release. */
struct fdref {
    int fd;
    int slot; /* -1: close it; -2: not ours to close */
};

struct file {
    struct node *node;
    atomic_int fd; /* -1 as long as nobody needed it */
    uint32_t flags;
    uint32_t generation;
    atomic_uint refs;
    bool passed, cached, writes, settles;
};

struct parked {
    struct parked *next;
    uint64_t ticket;
    bool interrupted;
    bool along; /* for a snapshot that needs nothing of Python, which was not told of this */
    fsd_event event;
    uint32_t length;
    _Alignas(8) unsigned char request[];
};

struct event {
    struct event *next;
    fsd_event is;
};

struct taken {
    struct taken *next;
    fsd_taken is;
};

/* The snapshot that is being taken as it was laid ready, and those that were; under park_lock. */
struct taking {
    pthread_cond_t wake, done;
    atomic_int directory; /* in which the directories with snapshots are; -1: not known yet */
    uint32_t number;      /* of the export; 0: none is being taken */
    int source;
    fsd_preparation by;
    int64_t since_ns;
    bool told;   /* it takes long: those who wait were left to Python */
    bool landed; /* those who wait go on, or are left to Python, at once */
    struct taken *taken;
    fsd_event news; /* of the latest, which Python was not told of; its kind is 0 otherwise */
    atomic_int unwritten;
    atomic_ulong count;
};

struct pending {
    struct pending *next;
    uint64_t unique;
    uint32_t opcode;
};

struct queued {
    struct queued *next;
    size_t length;
    unsigned char bytes[];
};

enum mail { NOTICES, NAMES, MAILBOXES };

/* Messages to the kernel that a thread of its own sends, in order. */
struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct queued *first, *last;
    atomic_long busy_since; /* when it began to send what it is sending; 0: nothing */
};

struct denied {
    uint32_t pid, order; /* order: the larger, the later; 0 is a free place */
    uint64_t started, owner;
};

/* An object of the synthetic tree as Python rendered it. */
struct published_link {
    struct published_link *next;
    struct published *object;
    uint32_t at;
};

struct published_range {
    uint32_t first, count;
};

struct published {
    struct published *next_named;
    uint64_t parent, owner, generation, transaction;
    int64_t until_ns;
    uint32_t count, serial;
    fsd_entry *entries;
    char *text, *subvolume;
    struct published_range *ranges; /* the entries in each entry */
    struct published_link *links;
};

struct published_place {
    struct published *object;
    uint32_t at;
};

struct followed {
    int watch;
    char pattern[32];
};

struct published_all {
    pthread_mutex_t lock;
    struct published_link **ids;
    struct published **names; /* objects by where they are listed */
    struct group **groups;
    uint64_t *released; /* groups nothing is held of, for Python */
    uint32_t released_count, released_room;
    atomic_uint group_count;
    uint64_t generation;
    uint32_t serial;
    int queue, followed;
    struct followed follows[FOLLOWED_MAX];
    uint64_t failed[FAILED_MAX];
    uint32_t failed_count;
    atomic_uint count;
    atomic_ulong answered;
};

#define PENDING_BUCKETS 256
#define DENIED_MAX 1024
#define DENIED_WAYS 8
#define OWN_TIDS 64

/* Locks are taken in this order: exports_lock or a shard's storing, then a shard's lock, then parents_lock. Those of
   slots, watches and mailboxes are taken under the first two as well, and all others are held alone. Under none of
   them may the last reference of a node go: with the last node of an export that takes exports_lock. */
struct plane {
    int device, socket, event_fd, stop_fd, pump_fd;
    int threads, spin_max, quiet, idle;
    int latency_fd; /* of the kernel's CPU latency QoS; -1: nothing is asked of it */
    bool awake;     /* idle processors poll; the watchman's, as the next two are */
    unsigned calm_ticks;
    _Atomic uint64_t awakenings;
    bool want_passthrough;
    atomic_bool stopping;
    atomic_bool ended;
    atomic_bool passthrough;
    char **noise;
    uint32_t own_uid, own_gid;
    pthread_t *workers;
    int started;
    struct shard shards[SHARDS];
    pthread_mutex_t parents_lock;
    pthread_rwlock_t exports_lock;
    struct export *exports;
    pthread_mutex_t slots_lock;
    struct slot *slots;
    int slot_count, slot_hand;
    pthread_mutex_t files_lock;
    struct file **files;
    uint32_t file_count, file_hint, file_generation;
    pthread_mutex_t park_lock;
    pthread_cond_t runnable_wake;
    struct parked *parked, *runnable;
    struct taking taking;
    char *noise_text;
    struct event *events, *last_event;
    uint32_t event_count;
    uint64_t next_ticket;
    struct denied denied[DENIED_MAX];
    atomic_uint denied_count;
    pthread_mutex_t pending_lock;
    struct pending *pending[PENDING_BUCKETS];
    pthread_mutex_t queue_lock;
    struct queued *queue, *last_queued;
    struct scan *scan;
    struct mailbox mail[MAILBOXES];
    struct watches *watches;
    pthread_t watcher;
    bool watcher_started;
    atomic_ulong lost;   /* how often more changed than could be followed */
    atomic_uint changes; /* counts changes made elsewhere, before the kernel is told of them */
    atomic_int own_tids[OWN_TIDS];
    atomic_uint own_tid_count;
    pthread_mutex_t turn_lock;
    pthread_cond_t turn_free, watch_wake;
    struct worker *_Atomic reader; /* whose turn it is */
    atomic_bool watch_asleep;
    uint32_t minor, kernel_minor, max_pages;
    uint64_t offered;
    struct published_all published;
    atomic_ulong requests, forwarded, parked_total, refused, node_count, open_files, backings, pinned, polls,
        spins, malformed, searches, operations[64], asked[64];
};

/* One request in hand. The answer is built in place after its header and written at once. */
struct request {
    struct plane *plane;
    struct worker *worker;
    struct fuse_in_header *in;
    unsigned char *arg; /* what follows the header */
    size_t length;      /* of arg, bytes */
    unsigned char *out; /* room for an answer's payload, BUFFER_SIZE bytes less the header */
    unsigned changes;   /* how many were made elsewhere when it came */
    bool passed_gate;
    bool done; /* what was asked for has happened, so it must not be done again */
};

struct worker {
    struct plane *plane;
    unsigned char *input, *output;
    int spin;
    atomic_bool asleep, handling;
    atomic_ulong handled;
    uint32_t fs_uid, fs_gid, mask;
    bool fsetid;
    uint32_t effective[2], permitted[2], inheritable[2];
};

/* nodes.c */
int nodes_init(struct plane *p);
void nodes_free(struct plane *p);
struct node *node_find(struct plane *p, uint64_t id);
void node_put(struct plane *p, struct node *node);
void node_hold(struct node *node);
void node_forget(struct plane *p, uint64_t id, uint64_t lookups);
struct node *node_enter(struct plane *p, struct tree *tree, uint64_t inode, const struct handle *handle,
                        struct node *parent, const char *name, bool directory);
void node_count(struct plane *p, struct node *node);
struct node *node_parent(struct plane *p, struct node *node);
void node_rename(struct plane *p, struct node *node, struct node *parent, const char *name);
void node_name(struct plane *p, struct node *node, char *name);
void node_pin(struct plane *p, struct node *node, int fd);
void nodes_unpin(struct plane *p, const struct export *ex);
uint64_t *node_ids(struct plane *p, int shard, const struct export *ex, size_t *count);
uint64_t tree_id(const struct tree *tree, uint64_t inode);
pthread_mutex_t *node_lock(struct plane *p, const struct node *node);
pthread_mutex_t *node_store_lock(struct plane *p, const struct node *node);

/* fds.c */
int fds_init(struct plane *p, int descriptors);
void fds_free(struct plane *p);
int fd_of(struct plane *p, struct node *node, struct fdref *ref);
void fd_release(struct plane *p, struct fdref *ref);
void fd_drop(struct plane *p, struct node *node);
void fd_drop_export(struct plane *p, const struct export *ex);
int node_open(struct plane *p, struct node *node, int flags);
void magic_path(int fd, char path[32]);
int open_beneath(const struct export *ex, int directory, const char *name);
int handle_of(int directory, const char *name, int flags, struct handle *handle);
int open_handle(int mount, const struct handle *handle, int flags);
uint32_t handle_digest(const struct handle *handle);
void slot_lock(struct plane *p, const struct fdref *ref);
void slot_unlock(struct plane *p, const struct fdref *ref);

/* exports.c */
struct tree *tree_of(struct export *ex, const struct handle *root);
void export_node_gone(struct plane *p, struct export *ex);
int export_open_root(struct export *ex, const char *path);
struct export *export_find(struct plane *p, uint32_t number);
void exports_free(struct plane *p);
void tree_renew(struct tree *tree);
void tree_describe(struct tree *tree, const struct handle *root, const struct statx *info);
void handle_from(const struct statx *info, struct handle *handle);

/* lookup.c */
struct child {
    struct node *node; /* held */
    struct statx info;
};
int child_of(struct request *r, struct node *parent, int directory, const char *name, struct child *child);
uint64_t device_of(const struct statx *info);
int stat_fd(int fd, struct statx *info);
int enter(struct request *r, struct tree *tree, const struct handle *handle, struct node *parent, const char *name,
          struct child *child);
int enter_fd(struct request *r, struct node *parent, const char *name, int fd, struct child *child);
void child_drop(struct request *r, struct child *child);

/* reply.c */
void put_attr(struct fuse_attr *attr, uint64_t id, const struct statx *info);
void put_entry(const struct plane *p, unsigned changes, const struct node *node, const struct statx *info,
               struct fuse_entry_out *entry);
bool may_keep(const struct plane *p, unsigned changes, const struct node *node);
int64_t age_of(const struct statx *info);
int reply_entry(struct request *r, struct child *child);
int reply_attr(struct request *r, const struct node *node, const struct statx *info);
int device_write(struct plane *p, const void *message, size_t length);
void reply_send(struct plane *p, uint64_t unique, unsigned char *buffer, int result);
void reply_error(struct plane *p, uint64_t unique, int error);
const char *take_name(struct request *r, size_t offset);
const char *take_text(struct request *r, size_t offset);
const void *take(struct request *r, size_t size);
const char *next_name(struct request *r, const char *name);

/* attrs.c */
int getattr(struct request *r, struct statx *info);

/* xattrs.c */
bool is_acl(const char *name);

/* birth.c */
size_t statx_asked(unsigned char *message, size_t length);
size_t statx_answered(unsigned char *message, size_t length);

/* creds.c */
void creds_start(struct worker *w);
int creds_act(struct worker *w, uint32_t uid, uint32_t gid, uint32_t mask);
void creds_fsetid(struct worker *w, bool keep);

/* park.c */
int gate(struct request *r, struct node *node, const char *name, const char *other);
int gate_node(struct request *r, struct node *node);
int refuse_removal(struct request *r, struct node *node, const char *name);
void deny_lister(struct plane *p, uint32_t pid, uint64_t owner);
int park_for_number(struct request *r, struct export *ex, const struct handle *root);
bool park_interrupt(struct plane *p, uint64_t unique);
void event_push(struct plane *p, const fsd_event *event);
void event_push_locked(struct plane *p, const fsd_event *event);
void signal_python(struct plane *p);
void park_settle_locked(struct plane *p, bool go);
void park_run_ready(struct worker *w);
int park_init(struct plane *p, const char *noise);
void park_free(struct plane *p);

/* prepared.c */
void prepared_init(struct plane *p);
void prepared_free(struct plane *p);
void prepared_drop(struct export *ex);
bool prepared_covers_locked(struct plane *p, struct export *ex);
int64_t prepared_patience_locked(struct plane *p);
void prepared_tell_locked(struct plane *p);
void *taker_main(void *argument);

/* latency.c */
void latency_start(struct plane *p, bool wanted);
void latency_tick(struct plane *p, uint64_t requests);
void latency_rest(struct plane *p);
void latency_stop(struct plane *p);

/* process.c */
uint64_t process_started(uint32_t pid);
bool process_is_dying(uint32_t pid);

/* files.c */
struct file *file_get(struct plane *p, uint64_t fh);
void file_put(struct plane *p, struct file *file);
void files_free(struct plane *p);
int file_opened(struct request *r, struct node *node, int fd, uint32_t flags, const struct statx *info,
                struct plane_open_out *out);

/* loop.c */
int dispatch(struct request *r);
int loop_start(struct plane *p);
void loop_stop(struct plane *p);
int thread_start(pthread_t *thread, void *(*main)(void *), void *argument);
void plane_ended(struct plane *p);
void handle_request(struct worker *w, unsigned char *message, size_t length, bool passed_gate);

/* turns.c */
int64_t monotonic_ns(void);
int64_t epoch_ns(void);
struct timespec after_ns(int64_t ns);
void turns_init(struct plane *p);
void turns_stop(struct plane *p);
void turns_free(struct plane *p);
bool turn_is(const struct worker *w);
bool turn_take(struct worker *w);
void turn_leave(struct worker *w);
void turn_sleeps(struct worker *w, bool sleeps);
void *watchman_main(void *argument);

/* forward.c */
void forward(struct plane *p, void *message, size_t length);
bool forward_pending(struct plane *p, uint64_t unique);
void forward_free(struct plane *p);
void *pump_main(void *argument);

/* published.c: what is taken is locked until it is given back */
int published_init(struct plane *p);
void published_free(struct plane *p);
bool published_take(struct plane *p, uint64_t id, struct published_place *place);
bool published_take_child(struct plane *p, uint64_t parent, const char *name, struct published_place *place);
bool published_take_listing(struct plane *p, uint64_t id, uint32_t serial, struct published_place *place);
bool published_is_answer(const struct published_place *place);
bool published_is_valid(struct plane *p, const struct published_place *place);
void published_give(struct plane *p);
uint64_t published_held(struct plane *p);
bool has_failed(struct plane *p, uint64_t id);
uint64_t published_forget(struct plane *p, uint64_t id, uint64_t lookups);
uint64_t published_bucket(uint64_t value);

/* groups.c */
bool group_enter(struct published_all *all, uint64_t id);
void group_leave(struct published_all *all, uint64_t id);
void group_refused(struct published_all *all, uint64_t id);
void group_count(struct published_all *all, uint64_t id);
uint64_t group_forget(struct published_all *all, uint64_t id, uint64_t lookups);
uint64_t groups_held(const struct published_all *all);
void groups_free(struct published_all *all);

/* synthetic.c */
int synthetic(struct request *r);
void synthetic_opened(struct fuse_open_out *out);

/* notify.c */
void notify_init(struct plane *p);
void notify_wake(struct plane *p);
void notify_free(struct plane *p);
bool notify_later(struct plane *p, const void *message, size_t length);
void notify_inval_entry(struct plane *p, uint64_t parent, const char *name);
void notify_inval_inode(struct plane *p, uint64_t id);
void notify_name_gone(struct plane *p, uint64_t parent, const char *name);
int notify_inode_now(struct plane *p, uint64_t id, bool data);
void notify_ask_again(struct plane *p);
bool notify_names_stuck(struct plane *p);
void *notifier_main(void *argument);
void *namer_main(void *argument);

/* watch.c */
int watches_start(struct plane *p);
void watches_stop(struct plane *p);
void watches_free(struct plane *p);
uint32_t watches_count(struct plane *p);
void tree_watch(struct plane *p, struct tree *tree);
void tree_unwatch(struct plane *p, struct tree *tree);
bool tree_is_told(const struct plane *p, const struct tree *tree);

/* scan.c, ahead.c */
void scan_drop(struct plane *p);
int ahead_start(struct plane *p);
void ahead_stop(struct plane *p);

/* Handlers: each answers one opcode with the length of its payload or a negated errno. */
typedef int handler(struct request *r);
handler do_lookup, do_getattr, do_setattr, do_readlink, do_symlink, do_mknod, do_mkdir, do_unlink, do_rmdir,
    do_rename, do_rename2, do_link, do_open, do_read, do_write, do_statfs, do_release, do_fsync, do_setxattr,
    do_getxattr, do_listxattr, do_removexattr, do_flush, do_opendir, do_readdir, do_readdirplus, do_releasedir,
    do_fsyncdir, do_create, do_tmpfile, do_fallocate, do_lseek, do_copy_file_range, do_ioctl, do_poll, do_syncfs,
    do_statx;

#endif
