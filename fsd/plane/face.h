/* The interface of the data plane to Python (read by cffi; no preprocessor conditions here). */

typedef struct plane plane;

/* Flags of an export. */
#define FSD_READ_ONLY 1
#define FSD_FROZEN 2
#define FSD_BY_NAME 4
#define FSD_GATED 8
#define FSD_SEALED 16 /* nothing in it may change; it can be exchanged for a copy that may */

/* How nodes are reopened: by a btrfs handle made from the inode number, by a kept handle, by name. */
#define FSD_BTRFS_HANDLES 0
#define FSD_HANDLES 1
#define FSD_NAMES 2

/* Kinds of events. */
#define FSD_PARKED 1
#define FSD_REFUSED 2
#define FSD_NUMBER 3
#define FSD_ENDED 4

typedef struct {
    int kind;
    int error;
    uint64_t ticket;
    uint64_t nodeid;
    uint32_t number;
    uint32_t opcode;
    uint32_t pid;
    uint32_t uid;
    uint32_t gid;
    uint32_t names;
    char name[2][256];
    uint32_t handle_length;
    unsigned char handle[136];
} fsd_event;

typedef struct {
    int device;
    int socket;
    int threads;
    int descriptors;
    int passthrough;
    int spin;
    int quiet;
    const char *noise;
} fsd_settings;

typedef struct {
    uint64_t requests;
    uint64_t forwarded;
    uint64_t parked;
    uint64_t refused;
    uint64_t nodes;
    uint64_t files;
    uint64_t exports;
    uint64_t descriptors;
    uint64_t backings;
    uint64_t pinned;
    uint64_t polls;
    uint64_t spins;
    uint64_t malformed;
    uint64_t searches;
    uint64_t watched;
    uint64_t unwatched;
    uint64_t lost;
    uint64_t operations[64];
    int passthrough;
    int ended;
    int threads;
    uint32_t minor;
} fsd_stats;

plane *fsd_start(const fsd_settings *settings);
void fsd_stop(plane *p);
int fsd_event_fd(plane *p);
int fsd_next_event(plane *p, fsd_event *event);
int fsd_resume(plane *p, uint64_t ticket, int error);
int64_t fsd_export(plane *p, const char *path, uint32_t number, uint32_t flags, uint64_t owner,
                   int userns);
int fsd_unexport(plane *p, uint32_t number);
int fsd_number(plane *p, uint32_t export_number, const unsigned char *handle, uint32_t length, uint32_t number);
int fsd_exchange(plane *p, uint32_t number, const char *path);
int fsd_sweep(plane *p, uint32_t *numbers, int room);
int fsd_mode(plane *p, uint32_t number);
int fsd_arm(plane *p, uint32_t number);
int fsd_disarm(plane *p, uint32_t number, int64_t quiet_ns, int64_t until_ns);
int fsd_deny(plane *p, uint32_t pid, uint64_t started, uint64_t owner);
int fsd_invalidate_entry(plane *p, uint64_t parent, const char *name);
void fsd_stats_read(plane *p, fsd_stats *stats);
