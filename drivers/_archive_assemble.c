/* Reads tar-split lines in the spelling that Go and our writer use, and gives back archive bytes.
 *
 * Like the unpacking loop it is conservative: at a line spelt otherwise, a name that is not plain, a file
 * that is missing, changed or too large for the buffer, it stops in front of the line, and the caller
 * handles that line with every rule and error text.
 */
#define _GNU_SOURCE
#include "_archive_unpack.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct line {
    int file;
    const uint8_t *name, *payload;
    size_t name_size, payload_size; /* payload as base64; empty for null */
    uint64_t size, crc;
    size_t taken;
};

struct text {
    const uint8_t *at, *end;
};

static int skip(struct text *t, const char *what)
{
    size_t size = strlen(what);

    if ((size_t)(t->end - t->at) < size || memcmp(t->at, what, size))
        return -1;
    t->at += size;
    return 0;
}

static int number(struct text *t, uint64_t *value)
{
    const uint8_t *start = t->at;

    for (*value = 0; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++)
        *value = *value * 10 + (uint64_t)(*t->at - '0');
    return t->at == start || t->at - start > 18 ? -1 : 0;
}

/* The characters up to a closing quote; -1 if there is an escape. */
static int quoted(struct text *t, const uint8_t **start, size_t *size)
{
    const uint8_t *quote = memchr(t->at, '"', (size_t)(t->end - t->at));

    if (!quote || memchr(t->at, '\\', (size_t)(quote - t->at)))
        return -1;
    *start = t->at;
    *size = (size_t)(quote - t->at);
    t->at = quote + 1;
    return 0;
}

static int8_t digit_value[256];

__attribute__((constructor)) static void fill_digits(void)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    memset(digit_value, -1, sizeof digit_value);
    for (int i = 0; i < 64; i++)
        digit_value[(unsigned char)digits[i]] = (int8_t)i;
}

/* Strict base64. Returns the decoded size, or -1. */
static ssize_t decode(const uint8_t *text, size_t size, uint8_t *out)
{
    const int8_t *value = digit_value;
    uint8_t *start = out;

    if (size % 4)
        return -1;
    while (size >= 4) {
        if (size > 16 && !memcmp(text, "AAAAAAAAAAAAAAAA", 16)) { /* most of a header is zeros */
            memset(out, 0, 12);
            out += 12;
            text += 16;
            size -= 16;
            continue;
        }
        int a = value[text[0]], b = value[text[1]], c = value[text[2]], d = value[text[3]];
        int pad = size == 4 ? (text[3] == '=') + (text[3] == '=' && text[2] == '=') : 0;

        if (pad > 0)
            d = 0;
        if (pad > 1)
            c = 0;
        if ((a | b | c | d) < 0)
            return -1;
        *out++ = (uint8_t)(a << 2 | b >> 4);
        if (pad < 2)
            *out++ = (uint8_t)(b << 4 | c >> 2);
        if (pad < 1)
            *out++ = (uint8_t)(c << 6 | d);
        text += 4;
        size -= 4;
    }
    return out - start;
}

static int read_crc(struct line *l)
{
    uint8_t big[12];

    l->crc = 0;
    if (!l->size)
        return 0;
    if (l->payload_size != 12 || decode(l->payload, 12, big) != 8)
        return -1;
    for (int i = 0; i < 8; i++)
        l->crc = l->crc << 8 | big[i];
    return 0;
}

/* One line, its newline included. -1: spelt otherwise, or incomplete. */
static int parse_line(const uint8_t *data, size_t size, struct line *l)
{
    const uint8_t *newline = memchr(data, '\n', size);
    struct text t = {data, newline};
    uint64_t position;

    if (!newline)
        return -1;
    memset(l, 0, sizeof *l);
    if (skip(&t, "{\"type\":2,\"payload\":\"") == 0) {
        if (quoted(&t, &l->payload, &l->payload_size) < 0)
            return -1;
    } else {
        l->file = 1;
        if (skip(&t, "{\"type\":1,\"name\":\"") < 0 || quoted(&t, &l->name, &l->name_size) < 0)
            return -1;
        if (skip(&t, ",\"size\":") == 0 && number(&t, &l->size) < 0)
            return -1;
        if (skip(&t, ",\"payload\":null") < 0 &&
            (skip(&t, ",\"payload\":\"") < 0 || quoted(&t, &l->payload, &l->payload_size) < 0))
            return -1;
        if (read_crc(l) < 0)
            return -1;
    }
    if (skip(&t, ",\"position\":") < 0 || number(&t, &position) < 0 || skip(&t, "}") < 0 || t.at != t.end)
        return -1;
    l->taken = (size_t)(newline - data) + 1;
    return 0;
}

/* Content of a file of the tree, checked. -1: the caller finds out what is wrong. */
static int read_file(fsd_unpack *x, const struct line *l, uint8_t *out)
{
    char path[PATH_SIZE];
    size_t size, cut, done = 0;
    struct stat st;
    int dir, fd;

    if (fsd_clean((const char *)l->name, l->name_size, path, &size) < 0 || !size)
        return -1;
    for (cut = size; cut && path[cut - 1] != '/'; cut--)
        ;
    dir = fsd_directory(x, path, cut ? cut - 1 : 0);
    if (dir < 0)
        return -1;
    fd = openat(dir, path + cut, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == l->size)
        while (done < l->size) {
            ssize_t got = read(fd, out + done, l->size - done);

            if (got <= 0)
                break;
            done += (size_t)got;
        }
    close(fd);
    return done == l->size && fsd_crc64(0, out, done) == l->crc ? 0 : -1;
}

static int emit(fsd_unpack *x, const struct line *l, fsd_reassembly *r, uint8_t *out, size_t room)
{
    ssize_t got;

    if (l->file) {
        if (!l->size || !l->crc)
            return 0;
        if (l->size > room)
            return FSD_MORE;
        if (r->sparse || read_file(x, l, out) < 0)
            return FSD_OTHER;
        r->produced += l->size;
        return 0;
    }
    if (l->payload_size / 4 * 3 > room)
        return FSD_MORE;
    got = decode(l->payload, l->payload_size, out);
    if (got < 0)
        return FSD_OTHER;
    if (got)
        r->sparse = memmem(out, (size_t)got, "GNU.sparse.", 11) != NULL;
    r->produced += (size_t)got;
    return 0;
}

int fsd_assemble_run(fsd_unpack *x, const uint8_t *lines, size_t size, uint8_t *out, size_t room, fsd_reassembly *r)
{
    int rc = FSD_OTHER;

    r->consumed = r->produced = 0;
    while (r->consumed < size) {
        struct line l;

        rc = FSD_OTHER;
        if (parse_line(lines + r->consumed, size - r->consumed, &l) < 0)
            break;
        rc = emit(x, &l, r, out + r->produced, room - r->produced);
        if (rc)
            break;
        r->consumed += l.taken;
    }
    return rc;
}

int fsd_index_run(const uint8_t *lines, size_t size, uint8_t *out, size_t room, fsd_piece *pieces, size_t max,
                  fsd_reassembly *r)
{
    int rc = 0;

    r->consumed = r->produced = r->pieces = 0;
    while (r->consumed < size && r->pieces < max) {
        fsd_piece *p = &pieces[r->pieces];
        struct line l;

        rc = FSD_OTHER;
        if (parse_line(lines + r->consumed, size - r->consumed, &l) < 0)
            break;
        if ((l.file ? l.name_size : l.payload_size) > room - r->produced) {
            rc = FSD_MORE;
            break;
        }
        p->file = (uint32_t)l.file;
        p->crc = l.crc;
        if (l.file) {
            memcpy(out + r->produced, l.name, l.name_size);
            p->stored = (uint32_t)l.name_size;
            p->size = l.size;
        } else {
            ssize_t got = decode(l.payload, l.payload_size, out + r->produced);

            if (got < 0)
                break;
            p->stored = (uint32_t)got;
            p->size = (uint64_t)got;
        }
        rc = 0;
        r->produced += p->stored;
        r->pieces++;
        r->consumed += l.taken;
    }
    return rc;
}
