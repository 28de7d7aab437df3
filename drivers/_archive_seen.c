/* The set of marks; SipHash-2-4 (Aumasson, Bernstein 2012) into open addressing. */
#include "_archive.h"

#include <stdlib.h>
#include <string.h>

#define EMPTY 0u
#define DROPPED 1u
#define FIRST_CAPACITY 4096u

struct fsd_seen {
    uint64_t k0, k1;
    uint64_t *slots;
    size_t capacity, used; /* used counts dropped slots too */
};

static inline uint64_t rotl(uint64_t v, int n) { return v << n | v >> (64 - n); }

#define SIP_ROUND                                                                                  \
    do {                                                                                           \
        v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32);                                  \
        v2 += v3; v3 = rotl(v3, 16); v3 ^= v2;                                                     \
        v0 += v3; v3 = rotl(v3, 21); v3 ^= v0;                                                     \
        v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32);                                  \
    } while (0)

static uint64_t siphash(const fsd_seen *s, uint64_t tweak, const uint8_t *p, size_t size)
{
    uint64_t k0 = s->k0 ^ tweak, k1 = s->k1;
    uint64_t v0 = k0 ^ UINT64_C(0x736f6d6570736575), v1 = k1 ^ UINT64_C(0x646f72616e646f6d);
    uint64_t v2 = k0 ^ UINT64_C(0x6c7967656e657261), v3 = k1 ^ UINT64_C(0x7465646279746573);
    uint64_t last = (uint64_t)size << 56, m;
    size_t left = size;

    for (; left >= 8; p += 8, left -= 8) {
        memcpy(&m, p, 8);
        v3 ^= m;
        SIP_ROUND;
        SIP_ROUND;
        v0 ^= m;
    }
    for (size_t i = 0; i < left; i++)
        last |= (uint64_t)p[i] << 8 * i;
    v3 ^= last;
    SIP_ROUND;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xff;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

static uint64_t key_of(const fsd_seen *s, int kind, const uint8_t *path, size_t size)
{
    uint64_t hash = siphash(s, (uint64_t)kind, path, size);

    return hash > DROPPED ? hash : hash + 2;
}

fsd_seen *fsd_seen_new(const uint8_t key[16])
{
    fsd_seen *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    memcpy(&s->k0, key, 8);
    memcpy(&s->k1, key + 8, 8);
    s->capacity = FIRST_CAPACITY;
    s->slots = calloc(s->capacity, sizeof *s->slots);
    if (!s->slots) {
        free(s);
        return NULL;
    }
    return s;
}

void fsd_seen_free(fsd_seen *s)
{
    if (s)
        free(s->slots);
    free(s);
}

static size_t find(const uint64_t *slots, size_t capacity, uint64_t key)
{
    size_t at = key & (capacity - 1);

    while (slots[at] != EMPTY && slots[at] != key)
        at = (at + 1) & (capacity - 1);
    return at;
}

static int grow(fsd_seen *s)
{
    size_t capacity = s->capacity * 2, used = 0;
    uint64_t *slots = calloc(capacity, sizeof *slots);

    if (!slots)
        return -1;
    for (size_t i = 0; i < s->capacity; i++)
        if (s->slots[i] > DROPPED) {
            slots[find(slots, capacity, s->slots[i])] = s->slots[i];
            used++;
        }
    free(s->slots);
    s->slots = slots;
    s->capacity = capacity;
    s->used = used;
    return 0;
}

int fsd_seen_add(fsd_seen *s, int kind, const uint8_t *path, size_t size)
{
    uint64_t key = key_of(s, kind, path, size);
    size_t at = find(s->slots, s->capacity, key);

    if (s->slots[at] == key)
        return 0;
    if (s->used >= s->capacity / 4 * 3) {
        if (grow(s) < 0)
            return -1;
        at = find(s->slots, s->capacity, key);
    }
    s->slots[at] = key;
    s->used++;
    return 1;
}

int fsd_seen_has(const fsd_seen *s, int kind, const uint8_t *path, size_t size)
{
    uint64_t key = key_of(s, kind, path, size);

    return s->slots[find(s->slots, s->capacity, key)] == key;
}

void fsd_seen_drop(fsd_seen *s, int kind, const uint8_t *path, size_t size)
{
    uint64_t key = key_of(s, kind, path, size);
    size_t at = find(s->slots, s->capacity, key);

    if (s->slots[at] == key)
        s->slots[at] = DROPPED;
}
