/* CRC-64/ISO. Where the processor multiplies polynomials, 64 bytes are folded a step (Gopal and others,
 * "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009); elsewhere, and
 * for what is left, tables take 16 bytes a step. */
#include "_archive.h"

#include <string.h>

/* x^64 + x^4 + x^3 + x + 1, bits reversed: bit 63 is x^0. */
#define POLY UINT64_C(0xD800000000000000)
#define FOLD_MIN 256u

static uint64_t table[16][256];

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static uint64_t by_table(uint64_t crc, const uint8_t *p, size_t size)
{
    for (; size >= 16; p += 16, size -= 16) {
        uint64_t a = crc ^ load64(p), b = load64(p + 8), c = 0;

        for (int k = 0; k < 8; k++)
            c ^= table[15 - k][a >> 8 * k & 0xff] ^ table[7 - k][b >> 8 * k & 0xff];
        crc = c;
    }
    while (size--)
        crc = table[0][(crc ^ *p++) & 0xff] ^ crc >> 8;
    return crc;
}

__attribute__((constructor)) static void fill_table(void)
{
    for (unsigned n = 0; n < 256; n++) {
        uint64_t c = n;

        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ POLY : c >> 1;
        table[0][n] = c;
    }
    for (unsigned n = 0; n < 256; n++)
        for (int k = 1; k < 16; k++) {
            uint64_t c = table[k - 1][n];

            table[k][n] = table[0][c & 0xff] ^ c >> 8;
        }
}

#if defined(__x86_64__)
#include <immintrin.h>

static int can_fold;
static uint64_t fold_512[2], fold_128[2]; /* for the first and the second half of 16 bytes */

/* x^n modulo the polynomial. */
static uint64_t power(unsigned n)
{
    uint64_t c = UINT64_C(1) << 63;

    while (n--)
        c = c & 1 ? c >> 1 ^ POLY : c >> 1;
    return c;
}

__attribute__((constructor)) static void prepare_folding(void)
{
    __builtin_cpu_init();
    can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    /* Reversed operands make the product one power of x too large. */
    fold_512[0] = power(512 + 64 - 1);
    fold_512[1] = power(512 - 1);
    fold_128[0] = power(128 + 64 - 1);
    fold_128[1] = power(128 - 1);
}

__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i x, __m128i by, __m128i next)
{
    __m128i first = _mm_clmulepi64_si128(x, by, 0x00), second = _mm_clmulepi64_si128(x, by, 0x11);

    return _mm_xor_si128(_mm_xor_si128(first, second), next);
}

__attribute__((target("pclmul,sse4.1"))) static uint64_t by_folding(uint64_t crc, const uint8_t **p, size_t *size)
{
    const __m128i *at = (const __m128i *)*p;
    __m128i far = _mm_set_epi64x((long long)fold_512[1], (long long)fold_512[0]);
    __m128i near = _mm_set_epi64x((long long)fold_128[1], (long long)fold_128[0]);
    __m128i x[4];
    uint8_t rest[16];

    for (int i = 0; i < 4; i++)
        x[i] = _mm_loadu_si128(at++);
    x[0] = _mm_xor_si128(x[0], _mm_set_epi64x(0, (long long)crc));
    for (*size -= 64; *size >= 64; *size -= 64)
        for (int i = 0; i < 4; i++)
            x[i] = fold(x[i], far, _mm_loadu_si128(at++));
    for (int i = 1; i < 4; i++)
        x[i] = fold(x[i - 1], near, x[i]);
    for (; *size >= 16; *size -= 16)
        x[3] = fold(x[3], near, _mm_loadu_si128(at++));
    _mm_storeu_si128((__m128i *)rest, x[3]);
    *p = (const uint8_t *)at;
    return by_table(0, rest, sizeof rest);
}
#endif

uint64_t fsd_crc64(uint64_t crc, const uint8_t *p, size_t size)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (can_fold && size >= FOLD_MIN)
        crc = by_folding(crc, &p, &size);
#endif
    return ~by_table(crc, p, size);
}

uint64_t fsd_crc64_by_table(uint64_t crc, const uint8_t *p, size_t size)
{
    return ~by_table(~crc, p, size);
}
