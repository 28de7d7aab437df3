"""Builds ``drivers._send``: the framing of a btrfs send stream (cffi, API mode).

One call cuts a buffer into commands and checks the CRC-32C of each, so that a stream of a hundred
thousand commands is not summed byte by byte in Python.
"""

from __future__ import annotations

from cffi import FFI

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>

struct send_command { uint32_t at, size; uint16_t kind, sound; };

enum { HEADER = 10, CRC_AT = 6 }; /* le32 size, le16 command, le32 crc (fs/btrfs/send.h) */

static uint32_t table[256];

static void fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t r = i;
        for (int bit = 0; bit < 8; bit++)
            r = (r >> 1) ^ (r & 1 ? 0x82f63b78u : 0); /* Castagnoli's polynomial, reflected */
        table[i] = r;
    }
}

static uint32_t crc32c(uint32_t r, const uint8_t *p, size_t n)
{
    while (n--)
        r = (r >> 8) ^ table[(r ^ *p++) & 0xff];
    return r;
}

static uint32_t le32(const uint8_t *p)
{
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The kernel starts at 0, does not invert, and takes the checksum field itself as zeros. */
static uint32_t command_crc(const uint8_t *head, size_t size)
{
    static const uint8_t zeros[4];
    uint32_t r = crc32c(0, head, CRC_AT);
    r = crc32c(r, zeros, sizeof zeros);
    return crc32c(r, head + HEADER, size);
}

/* Describe the whole commands at the start of a buffer; an unsound one ends the list. */
static size_t send_scan(const uint8_t *buffer, size_t length, struct send_command *out, size_t room)
{
    size_t at = 0, count = 0;
    if (!table[1])
        fill_table();
    while (count < room && length - at >= HEADER) {
        const uint8_t *head = buffer + at;
        uint32_t size = le32(head);
        if (length - at - HEADER < size)
            break;
        struct send_command *command = out + count++;
        command->at = (uint32_t)(at + HEADER);
        command->size = size;
        command->kind = (uint16_t)(head[4] | head[5] << 8);
        command->sound = command_crc(head, size) == le32(head + CRC_AT);
        if (!command->sound)
            break;
        at += HEADER + (size_t)size;
    }
    return count;
}

/* For writers of streams, such as tests. */
static uint32_t send_crc(const uint8_t *command, size_t length)
{
    if (!table[1])
        fill_table();
    return length < HEADER ? 0 : command_crc(command, length - HEADER);
}
"""

ffibuilder = FFI()
ffibuilder.cdef(
    """
    struct send_command { uint32_t at, size; uint16_t kind, sound; };
    static size_t send_scan(const uint8_t *buffer, size_t length, struct send_command *out, size_t room);
    static uint32_t send_crc(const uint8_t *command, size_t length);
    """
)
ffibuilder.set_source("drivers._send", SOURCE, extra_compile_args=["-O2"])
