/* Interface of the compiled part of drivers.archive; see _archive_impl.c. */
#ifndef FSD_ARCHIVE_H
#define FSD_ARCHIVE_H

#include <stddef.h>
#include <stdint.h>

/* CRC-64/ISO (ECMA-182's reflected 0x1B): seed with 0, chain by passing the last result. */
uint64_t fsd_crc64(uint64_t crc, const uint8_t *data, size_t size);

#endif
