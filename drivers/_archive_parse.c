/* Header blocks and tar-split lines of plain entries. POSIX pax (ustar and extended headers), GNU long
 * names; whatever is not met in ordinary archives gives FSD_OTHER. */
#include "_archive_unpack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512u
#define PAX_MAX (64u << 10)
#define ENTRY_MAX (4u << 20) /* larger files are streamed by the caller */

int fsd_put(struct buffer *b, const void *data, size_t size)
{
    if (b->capacity - b->size < size) {
        size_t capacity = b->capacity ? b->capacity : 1u << 16;
        char *grown;

        while (capacity - b->size < size)
            capacity *= 2;
        grown = realloc(b->data, capacity);
        if (!grown)
            return -1;
        b->data = grown;
        b->capacity = capacity;
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
    return 0;
}

/* -- fields ---------------------------------------------------------------------------------- */

/* Octal digits, spaces before, NUL or spaces after; -1 for anything else. */
static int octal(const uint8_t *field, size_t size, uint64_t *value)
{
    size_t at = 0;

    *value = 0;
    while (at < size && field[at] == ' ')
        at++;
    for (; at < size && field[at] >= '0' && field[at] <= '7'; at++)
        *value = *value << 3 | (field[at] - '0');
    for (; at < size; at++)
        if (field[at] && field[at] != ' ')
            return -1;
    return 0;
}

static int octal32(const uint8_t *field, size_t size, uint32_t *value)
{
    uint64_t wide;

    if (octal(field, size, &wide) < 0 || wide > UINT32_MAX)
        return -1;
    *value = (uint32_t)wide;
    return 0;
}

static int decimal(const char *text, size_t size, uint64_t max, uint64_t *value)
{
    *value = 0;
    if (!size || size > 18)
        return -1;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        *value = *value * 10 + (uint64_t)(text[i] - '0');
    }
    return *value > max ? -1 : 0;
}

static int checksum_matches(const uint8_t *block)
{
    uint64_t stated, sum = 8 * ' ';

    for (int i = 0; i < 148; i++)
        sum += block[i];
    for (unsigned i = 156; i < BLOCK; i++)
        sum += block[i];
    return octal(block + 148, 8, &stated) == 0 && stated == sum;
}

int fsd_clean(const char *name, size_t size, char *out, size_t *out_size)
{
    size_t at = 0, used = 0;

    if (!size || size >= PATH_SIZE || name[0] == '/')
        return -1;
    while (at < size) {
        const char *slash = memchr(name + at, '/', size - at);
        size_t part = slash ? (size_t)(slash - name) - at : size - at;

        if (part == 2 && name[at] == '.' && name[at + 1] == '.')
            return -1;
        if (part && !(part == 1 && name[at] == '.')) {
            if (part > NAME_SIZE)
                return -1;
            if (used)
                out[used++] = '/';
            memmove(out + used, name + at, part);
            used += part;
        }
        at += part + 1;
    }
    out[used] = 0;
    *out_size = used;
    return 0;
}

/* -- headers ----------------------------------------------------------------------------------- */

static size_t field_size(const uint8_t *field, size_t size)
{
    const uint8_t *nul = memchr(field, 0, size);

    return nul ? (size_t)(nul - field) : size;
}

static int set_text(char *out, size_t *out_size, const void *text, size_t size)
{
    if (size >= PATH_SIZE || memchr(text, 0, size))
        return FSD_OTHER;
    memcpy(out, text, size);
    out[size] = 0;
    *out_size = size;
    return 0;
}

/* What extension headers say; the entry's own header comes last and gives way to it. */
struct extension {
    int has_path, has_link, has_uid, has_gid, has_size, has_mtime, pax, long_name, long_link;
    size_t path_size, link_size;
    uint64_t uid, gid, size;
    struct timespec mtime;
    char path[PATH_SIZE], link[PATH_SIZE]; /* last: left uninitialised */
};

static int pax_time(const char *text, size_t size, struct timespec *time)
{
    const char *dot = memchr(text, '.', size);
    size_t whole = dot ? (size_t)(dot - text) : size;
    uint64_t sec;
    long nsec = 0, unit = 100000000;

    if (decimal(text, whole, INT64_MAX, &sec) < 0 || (dot && whole + 1 == size) || size > 60)
        return FSD_OTHER;
    for (size_t i = whole + 1; i < size; i++, unit /= 10) {
        if (text[i] < '0' || text[i] > '9')
            return FSD_OTHER;
        nsec += (text[i] - '0') * unit;
    }
    time->tv_sec = (time_t)sec;
    time->tv_nsec = nsec;
    return 0;
}

static int is(const char *key, size_t size, const char *name)
{
    return size == strlen(name) && !memcmp(key, name, size);
}

static int pax_record(struct extension *x, const char *key, size_t key_size, const char *value, size_t size)
{
    if (!size || memchr(value, 0, size))
        return FSD_OTHER;
    if (is(key, key_size, "path")) {
        x->has_path = 1;
        return set_text(x->path, &x->path_size, value, size);
    }
    if (is(key, key_size, "linkpath")) {
        x->has_link = 1;
        return set_text(x->link, &x->link_size, value, size);
    }
    if (is(key, key_size, "mtime")) {
        x->has_mtime = 1;
        return pax_time(value, size, &x->mtime);
    }
    if (is(key, key_size, "uid")) {
        x->has_uid = 1;
        return decimal(value, size, UINT32_MAX, &x->uid) < 0 ? FSD_OTHER : 0;
    }
    if (is(key, key_size, "gid")) {
        x->has_gid = 1;
        return decimal(value, size, UINT32_MAX, &x->gid) < 0 ? FSD_OTHER : 0;
    }
    if (is(key, key_size, "size")) {
        x->has_size = 1;
        return decimal(value, size, INT64_MAX, &x->size) < 0 ? FSD_OTHER : 0;
    }
    if (is(key, key_size, "atime") || is(key, key_size, "ctime") || is(key, key_size, "uname") ||
        is(key, key_size, "gname"))
        return 0;
    return FSD_OTHER;
}

static int parse_pax(struct extension *x, const char *body, size_t size)
{
    size_t at = 0;

    while (at < size) {
        const char *space = memchr(body + at, ' ', size - at), *equals;
        uint64_t length;
        size_t start, end;

        if (!space || decimal(body + at, (size_t)(space - body) - at, PAX_MAX, &length) < 0)
            return FSD_OTHER;
        start = (size_t)(space - body) + 1;
        end = at + length;
        if (end > size || end <= start || body[end - 1] != '\n')
            return FSD_OTHER;
        equals = memchr(body + start, '=', end - 1 - start);
        if (!equals || equals == body + start)
            return FSD_OTHER;
        if (pax_record(x, body + start, (size_t)(equals - body) - start, equals + 1,
                       (size_t)(body + end - 1 - equals) - 1))
            return FSD_OTHER;
        at = end;
    }
    return 0;
}

static int extend(struct extension *x, const uint8_t *block, const uint8_t *body, size_t size)
{
    const char *text = (const char *)body;
    size_t name_size = field_size(body, size);

    switch (block[156]) {
    case 'x':
        return x->pax++ ? FSD_OTHER : parse_pax(x, text, size);
    case 'L':
        if (x->long_name++ || !name_size)
            return FSD_OTHER;
        if (x->has_path)
            return 0;
        return set_text(x->path, &x->path_size, text, name_size);
    default:
        if (x->long_link++ || !name_size)
            return FSD_OTHER;
        if (x->has_link)
            return 0;
        return set_text(x->link, &x->link_size, text, name_size);
    }
}

static int own_name(struct entry *e, const uint8_t *block, int posix)
{
    size_t prefix = posix ? field_size(block + 345, 155) : 0, name = field_size(block, 100);
    char joined[260];

    if (prefix) {
        memcpy(joined, block + 345, prefix);
        joined[prefix++] = '/';
    }
    memcpy(joined + prefix, block, name);
    return set_text(e->name, &e->name_size, joined, prefix + name);
}

static int own_fields(struct entry *e, const uint8_t *block, const struct extension *x)
{
    uint64_t mtime;

    if (octal32(block + 100, 8, &e->mode) || octal32(block + 108, 8, &e->uid) ||
        octal32(block + 116, 8, &e->gid) || octal(block + 124, 12, &e->size) ||
        octal(block + 136, 12, &mtime))
        return FSD_OTHER;
    e->mode &= 07777;
    if (x->has_uid)
        e->uid = (uint32_t)x->uid;
    if (x->has_gid)
        e->gid = (uint32_t)x->gid;
    if (x->has_size)
        e->size = x->size;
    e->times[1].tv_sec = (time_t)mtime;
    e->times[1].tv_nsec = 0;
    if (x->has_mtime)
        e->times[1] = x->mtime;
    e->times[0] = e->times[1];
    return 0;
}

/* The entry's own header block, the extensions applied. */
static int own_header(struct entry *e, const uint8_t *block, const struct extension *x)
{
    int posix = !memcmp(block + 257, "ustar\0", 6), gnu = !memcmp(block + 257, "ustar  \0", 8);
    size_t link_size;
    uint64_t ignored;

    if ((!posix && !gnu) || (posix && !memcmp(block + 508, "tar\0", 4)) || own_fields(e, block, x))
        return FSD_OTHER;
    /* Access and change time of a GNU header; anything else there is not one. */
    if (gnu && ((block[345] && octal(block + 345, 12, &ignored)) || (block[357] && octal(block + 357, 12, &ignored))))
        return FSD_OTHER;
    e->type = block[156] ? (char)block[156] : '0';
    if (!strchr("0125", e->type) || (e->type != '0' && e->size))
        return FSD_OTHER;
    if (x->has_path || x->long_name) {
        memcpy(e->name, x->path, x->path_size + 1);
        e->name_size = x->path_size;
    } else if (own_name(e, block, posix))
        return FSD_OTHER;
    if (x->has_link || x->long_link)
        memcpy(e->link, x->link, x->link_size + 1);
    else if (set_text(e->link, &link_size, block + 157, field_size(block + 157, 100)))
        return FSD_OTHER;
    if (!block[156] && e->name_size && e->name[e->name_size - 1] == '/')
        return FSD_OTHER;
    return 0;
}

static int own_path(struct entry *e)
{
    const char *slash;

    if (fsd_clean(e->name, e->name_size, e->path, &e->path_size) < 0 || !e->path_size)
        return FSD_OTHER;
    slash = strrchr(e->path, '/');
    e->base = slash ? slash + 1 : e->path;
    return strncmp(e->base, ".wh.", 4) ? 0 : FSD_OTHER;
}

static int need(struct entry *e, size_t wanted, size_t size)
{
    e->wanted = wanted;
    return wanted > size ? FSD_MORE : 0;
}

int fsd_parse(const uint8_t *data, size_t size, size_t pad, struct entry *e)
{
    struct extension x;
    size_t at = pad;

    memset(&x, 0, offsetof(struct extension, path));
    for (;;) {
        const uint8_t *block = data + at;
        uint64_t body;

        if (need(e, at + BLOCK, size))
            return FSD_MORE;
        if (!checksum_matches(block))
            return FSD_OTHER;
        at += BLOCK;
        if (!strchr("xLK", block[156]) || !block[156]) {
            if (own_header(e, block, &x))
                return FSD_OTHER;
            break;
        }
        if (octal(block + 124, 12, &body) < 0 || body > PAX_MAX)
            return FSD_OTHER;
        if (need(e, at + (body + BLOCK - 1) / BLOCK * BLOCK, size))
            return FSD_MORE;
        if (extend(&x, block, data + at, body))
            return FSD_OTHER;
        at += (body + BLOCK - 1) / BLOCK * BLOCK;
    }
    if (own_path(e) || e->size > ENTRY_MAX)
        return FSD_OTHER;
    if (need(e, at + e->size, size))
        return FSD_MORE;
    e->headers = at - pad;
    e->content = data + at;
    e->taken = at + e->size;
    return 0;
}

/* -- tar-split --------------------------------------------------------------------------------- */

static int put_base64(struct buffer *b, const uint8_t *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const uint8_t zeros[12];
    char chunk[1024];
    size_t used = 0;

    while (size) {
        size_t taken = size < 3 ? size : 3;
        uint32_t v = (uint32_t)data[0] << 16;

        if (used + 16 > sizeof chunk) {
            if (fsd_put(b, chunk, used) < 0)
                return -1;
            used = 0;
        }
        if (size >= sizeof zeros && !memcmp(data, zeros, sizeof zeros)) { /* most of a header */
            memset(chunk + used, 'A', 16);
            used += 16;
            data += sizeof zeros;
            size -= sizeof zeros;
            continue;
        }
        if (taken > 1)
            v |= (uint32_t)data[1] << 8;
        if (taken > 2)
            v |= data[2];
        chunk[used++] = digits[v >> 18];
        chunk[used++] = digits[v >> 12 & 63];
        chunk[used++] = taken > 1 ? digits[v >> 6 & 63] : '=';
        chunk[used++] = taken > 2 ? digits[v & 63] : '=';
        data += taken;
        size -= taken;
    }
    return fsd_put(b, chunk, used);
}

static int put_text(struct buffer *b, const char *text) { return fsd_put(b, text, strlen(text)); }

static int put_end(struct buffer *b, uint64_t *position)
{
    char end[48];

    snprintf(end, sizeof end, ",\"position\":%llu}\n", (unsigned long long)*position);
    ++*position;
    return put_text(b, end);
}

static int plain_name(const struct entry *e)
{
    for (size_t i = 0; i < e->name_size; i++) {
        unsigned char c = (unsigned char)e->name[i];

        if (c < 0x20 || c > 0x7e || strchr("\"\\<>&", c))
            return 0;
    }
    return 1;
}

static int put_file(struct buffer *b, const struct entry *e)
{
    uint64_t crc;
    uint8_t big[8];
    char size[48];

    if (put_text(b, "{\"type\":1,\"name\":\"") < 0 || fsd_put(b, e->name, e->name_size) < 0)
        return -1;
    if (!e->size)
        return put_text(b, "\",\"payload\":null");
    crc = fsd_crc64(0, e->content, e->size);
    for (int i = 0; i < 8; i++)
        big[i] = (uint8_t)(crc >> (56 - 8 * i));
    snprintf(size, sizeof size, "\",\"size\":%llu,\"payload\":\"", (unsigned long long)e->size);
    return put_text(b, size) < 0 || put_base64(b, big, 8) < 0 || put_text(b, "\"") < 0 ? -1 : 0;
}

int fsd_record(fsd_unpack *x, const uint8_t *data, size_t pad, const struct entry *e, uint64_t *position)
{
    uint64_t start = *position;
    int rc = -1;

    if (plain_name(e) && put_text(&x->lines, "{\"type\":2,\"payload\":\"") == 0 &&
        put_base64(&x->lines, data, pad + e->headers) == 0 && put_text(&x->lines, "\"") == 0 &&
        put_end(&x->lines, position) == 0 && put_file(&x->lines, e) == 0)
        rc = put_end(&x->lines, position);
    if (rc < 0)
        *position = start;
    return rc;
}
