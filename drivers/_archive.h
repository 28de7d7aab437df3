/* The compiled part of drivers.archive: checksums (_archive_crc.c), the set of paths an archive has
 * put into the tree (_archive_seen.c), and the loop over plain entries (_archive_unpack.c).
 * Callers hold no lock; one object belongs to one thread at a time. */
#ifndef FSD_ARCHIVE_H
#define FSD_ARCHIVE_H

#include <stddef.h>
#include <stdint.h>

/* CRC-64/ISO: seed with 0, chain by passing the last result. */
uint64_t fsd_crc64(uint64_t crc, const uint8_t *data, size_t size);
/* The same without special instructions, for comparison. */
uint64_t fsd_crc64_by_table(uint64_t crc, const uint8_t *data, size_t size);

/* -- marks on paths ------------------------------------------------------------------------- */

/* A set of (kind, path) pairs kept as keyed 64-bit hashes: 16 bytes a path at most, and nobody can
 * prepare collisions. Two of a million paths collide with probability 3e-8. */
typedef struct fsd_seen fsd_seen;

fsd_seen *fsd_seen_new(const uint8_t key[16]);
void fsd_seen_free(fsd_seen *seen);
/* 1 added, 0 was there, -1 out of memory. */
int fsd_seen_add(fsd_seen *seen, int kind, const uint8_t *path, size_t size);
int fsd_seen_has(const fsd_seen *seen, int kind, const uint8_t *path, size_t size);
void fsd_seen_drop(fsd_seen *seen, int kind, const uint8_t *path, size_t size);

#define FSD_ENTRY 'e'  /* an entry of this archive */
#define FSD_PARENT 'p' /* a directory above one */
#define FSD_LINK 'l'   /* a symbolic link this archive made */

/* -- the loop ---------------------------------------------------------------------------------- */

typedef struct fsd_unpack fsd_unpack;

typedef struct {
    uint32_t container, host, size;
} fsd_range;

enum { FSD_MORE = 1, FSD_OTHER = 2 };

typedef struct {
    size_t consumed;      /* bytes of the input that are done with */
    size_t padding;       /* padding of the last entry that is still ahead, in and out */
    size_t wanted;        /* FSD_MORE: bytes the next entry needs from `consumed` on */
    uint64_t entries;     /* entries put into the tree by this call */
    uint64_t content;     /* sum of their sizes */
    uint64_t position;    /* tar-split line number, in and out */
    const char *lines;    /* tar-split lines of those entries, valid until the next call */
    size_t lines_size;
} fsd_progress;

/* `root` and `seen` stay the caller's. NULL when out of memory. */
fsd_unpack *fsd_unpack_new(int root, fsd_seen *seen, int record);
/* From now on directories that are not there yet are the caller's to make. */
void fsd_unpack_leave_new_directories(fsd_unpack *x);
void fsd_unpack_free(fsd_unpack *x);
/* Owners: identity without ranges. -1 when out of memory. */
int fsd_unpack_map(fsd_unpack *x, const fsd_range *uids, size_t nuids, const fsd_range *gids, size_t ngids);

/* Puts plain entries into the tree, from the start of `data`, until it meets one that is incomplete
 * (FSD_MORE) or anything but plain (FSD_OTHER). It changes nothing for the entry it stops at. */
int fsd_unpack_run(fsd_unpack *x, const uint8_t *data, size_t size, uint64_t entries_max, fsd_progress *progress);

/* The caller removed or changed directories: drop cached descriptors. */
void fsd_unpack_forget(fsd_unpack *x);

/* Note the time a directory gets at the end; 0, or -1 when out of memory. */
int fsd_unpack_add_time(fsd_unpack *x, const char *path, int64_t sec, int32_t nsec);
/* Set the noted times; directories that are gone are skipped. 0 or -errno. */
int fsd_unpack_set_times(fsd_unpack *x);

/* Distinct owners seen, as in the archive; copies at most `max` and returns their number. */
size_t fsd_unpack_owners(const fsd_unpack *x, int groups, uint32_t *out, size_t max);

/* -- reassembly -------------------------------------------------------------------------------- */

typedef struct {
    size_t consumed; /* bytes of the lines that are done with */
    size_t produced; /* bytes written to the output */
    size_t pieces;   /* fsd_index_run: pieces written */
    int sparse;      /* kept between calls: the last segment has a sparse map */
} fsd_reassembly;

typedef struct {
    uint64_t size, crc;
    uint32_t stored; /* bytes in the output: the raw bytes, or the name of the file */
    uint32_t file;
} fsd_piece;

/* Turns whole tar-split lines into archive bytes. 0: all consumed. FSD_MORE: the output is too small for
 * the next piece. FSD_OTHER: the next line is incomplete, or the caller's. `x` has no marks (seen NULL). */
int fsd_assemble_run(fsd_unpack *x, const uint8_t *lines, size_t size, uint8_t *out, size_t room,
                     fsd_reassembly *result);

/* Describes lines instead: at most `max` pieces, raw bytes and names one after another in the output.
 * Results as above. */
int fsd_index_run(const uint8_t *lines, size_t size, uint8_t *out, size_t room, fsd_piece *pieces, size_t max,
                  fsd_reassembly *result);

#endif
