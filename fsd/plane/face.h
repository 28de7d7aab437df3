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
#define FSD_OPENED 5
#define FSD_TAKEN 6

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

/* All it takes to snapshot an export before the first write of a burst. Times are since the epoch. */
typedef struct {
    char holder[256];      /* the directory to make it in; made if it is missing */
    int64_t not_before_ns;
    int64_t quiet_ns;      /* as in fsd_disarm */
    int64_t longest_ns;    /* how long mutations may pass afterwards */
    uint64_t generation;   /* of what the latest one holds; 0: of another tree, or none */
    double needed;         /* the part of the filesystem that has to be free */
} fsd_preparation;

/* A snapshot taken so. */
typedef struct {
    char holder[256];
    char name[256];
    int64_t when_ns;
} fsd_taken;

typedef struct {
    int device;
    int socket;
    int threads;
    int descriptors;
    int passthrough;
    int spin;
    int quiet;
    int idle;
    int keep_awake;
    const char *noise;
} fsd_settings;

typedef struct {
    uint64_t requests;
    uint64_t forwarded;
    uint64_t parked;
    uint64_t taken;
    uint64_t refused;
    uint64_t nodes;
    uint64_t files;
    uint64_t exports;
    uint64_t descriptors;
    uint64_t backings;
    uint64_t pinned;
    uint64_t polls;
    uint64_t spins;
    uint64_t awakenings;
    uint64_t malformed;
    uint64_t searches;
    uint64_t watched;
    uint64_t unwatched;
    uint64_t watching;
    uint64_t lost;
    uint64_t published;
    uint64_t held;
    uint64_t answered;
    uint64_t operations[64];
    uint64_t asked[64];
    int passthrough;
    int ended;
    int threads;
    uint32_t minor;
} fsd_stats;

#define FSD_PLACES 256 /* node ids of a group: an entry and its fixed entries */

/* Flags of a published entry. */
#define FSD_ASKED 1    /* its attributes may change unseen: Python is asked for them, though not for the listing's */
#define FSD_UNLOOKED 2 /* listed without a node; Python is asked for that */
#define FSD_LISTED 4   /* a directory whose entries are all here */
#define FSD_GUARDED 8  /* holds as long as the object's subvolume is in the transaction it was in */
#define FSD_TOLD 16    /* Python is told when the directory is opened first: it is to render more */

/* One entry of a published object; places and lengths are of its text, times in milliseconds. */
typedef struct {
    uint64_t id;
    uint64_t size;
    int64_t mtime_ns;
    uint32_t mode;
    uint32_t nlink;
    uint32_t generation;
    uint32_t parent; /* which entry it is in */
    uint32_t name;
    uint32_t name_length;
    uint32_t target; /* of a symlink */
    uint32_t target_length;
    uint32_t keep_name;
    uint32_t keep;
    uint32_t keep_listed;
    uint32_t flags;
} fsd_entry;

/* An object of the synthetic tree: itself, its entries, theirs, level by level. */
typedef struct {
    const fsd_entry *entries;
    const char *text;
    uint32_t count;
    uint32_t text_length;
    uint64_t parent;     /* node id of the directory it is listed in */
    uint64_t owner;      /* what a process that lists it may remove nothing of; 0: nothing to refuse */
    uint64_t generation; /* in which it was rendered */
    int64_t lasts_ns;
    const char *subvolume; /* NULL: nothing is guarded */
    uint64_t transaction;  /* that changed the subvolume last */
} fsd_object;

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
int fsd_writers(plane *p, uint32_t number);
int fsd_sweep(plane *p, uint32_t *numbers, int room);
int fsd_mode(plane *p, uint32_t number);
int fsd_arm(plane *p, uint32_t number);
int fsd_disarm(plane *p, uint32_t number, int64_t quiet_ns, int64_t until_ns);
int fsd_prepare_in(plane *p, const char *directory);
int fsd_prepare(plane *p, uint32_t number, const fsd_preparation *preparation);
int fsd_unwritten(plane *p);
int fsd_first_taken(plane *p, fsd_taken *taken);
void fsd_written(plane *p);
void fsd_await_taking(plane *p, const char *holder);
void fsd_deny(plane *p, uint32_t pid, uint64_t started, uint64_t owner);
void fsd_invalidate_entry(plane *p, uint64_t parent, const char *name);
uint64_t fsd_child(plane *p, uint64_t parent, const char *name);
int fsd_publish(plane *p, const fsd_object *object);
int fsd_retract(plane *p, uint64_t id);
int fsd_released(plane *p, uint64_t *ids, uint32_t room);
uint64_t fsd_generation(plane *p);
void fsd_outdate(plane *p);
void fsd_expire(plane *p, uint64_t id);
void fsd_failed(plane *p, const uint64_t *ids, uint32_t count);
int fsd_follow(plane *p, const char *directory, const char *pattern);
void fsd_stats_read(plane *p, fsd_stats *stats);
