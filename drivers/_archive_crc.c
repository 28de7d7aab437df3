#define _GNU_SOURCE
#include "_archive.h"

#include <pthread.h>

/* -- CRC-64/ISO, sixteen bytes a step ------------------------------------------------------- */

#define CRC_POLY UINT64_C(0xD800000000000000)

static uint64_t crc_table[16][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_fill(void)
{
    for (unsigned n = 0; n < 256; n++) {
        uint64_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ CRC_POLY : c >> 1;
        crc_table[0][n] = c;
    }
    for (unsigned n = 0; n < 256; n++)
        for (int k = 1; k < 16; k++) {
            uint64_t c = crc_table[k - 1][n];
            crc_table[k][n] = crc_table[0][c & 0xff] ^ c >> 8;
        }
}

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

uint64_t fsd_crc64(uint64_t crc, const uint8_t *p, size_t size)
{
    pthread_once(&crc_once, crc_fill);
    crc = ~crc;
    for (; size >= 16; p += 16, size -= 16) {
        uint64_t a = crc ^ load64(p), b = load64(p + 8), c = 0;
        for (int k = 0; k < 8; k++)
            c ^= crc_table[15 - k][a >> 8 * k & 0xff] ^ crc_table[7 - k][b >> 8 * k & 0xff];
        crc = c;
    }
    while (size--)
        crc = crc_table[0][(crc ^ *p++) & 0xff] ^ crc >> 8;
    return ~crc;
}
