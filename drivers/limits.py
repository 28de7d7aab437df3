"""Bounds on what one layer archive may ask for."""

from __future__ import annotations

from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds an archive must keep; exceeding one raises :class:`~drivers.errors.HostileArchive`.

    Args:
        entries: an archive must have fewer entries than this.
        size: most bytes the uncompressed archive may have.
        file_size: most bytes one file may have, holes included.
        ratio: most uncompressed bytes per compressed byte, once ``ratio_floor`` bytes came out.
            gzip cannot exceed 1032 and real layers stay below 100.
        ratio_floor: uncompressed bytes before ``ratio`` counts, so that small archives of zeros pass.
        window: most bytes of history a zstd or xz decoder may keep.
        stored: most bytes of content that tar-split must carry itself, because the layer's tree
            cannot give them back (sparse maps, content replaced by the same archive).
    """

    entries: int = 1_000_000
    size: int = 1 << 44
    file_size: int = 1 << 43
    ratio: int = 500
    ratio_floor: int = 1 * GIB
    window: int = 128 * MIB
    stored: int = 1 * GIB


DEFAULT_LIMITS = Limits()
