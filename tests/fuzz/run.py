"""Fuzz for a while and keep inputs worth keeping: ``python -m tests.fuzz.run SECONDS``.

An archive is kept when it fails, or when its outcome (error text with names and numbers removed, or the
kinds of entries in the tree) has not been seen before.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from drivers.archive import apply_archive
from drivers.errors import ArchiveError
from tests.fuzz.archives import LIMITS, Arena, archives

CORPUS = Path(__file__).parent / "corpus"
KEPT_MAX = 250


def signature(arena: Arena, archive: bytes) -> str:
    """What is particular about an outcome."""
    arena._fresh()
    try:
        applied = apply_archive(arena.tree, io.BytesIO(archive), limits=LIMITS)
    except (ArchiveError, OSError) as error:
        return type(error).__name__ + re.sub(r"'.*?'|b'.*?'|\d+", "_", str(error))[:60]
    kinds = sorted({entry.kind for entry in arena.check(archive).tree.values()})  # type: ignore[attr-defined]
    return f"{kinds} {applied.content_size > 0} {len(applied.uids)}"


def main(seconds: float) -> int:
    """Run until the time is over or a property breaks."""
    CORPUS.mkdir(exist_ok=True)
    end, count, seen = time.monotonic() + seconds, 0, set()
    with tempfile.TemporaryDirectory(prefix="fsd-fuzz-") as base:
        arena = Arena(Path(base))
        for path in CORPUS.glob("*.tar"):
            seen.add(signature(arena, path.read_bytes()))

        @settings(
            max_examples=400,
            deadline=None,
            database=DirectoryBasedExampleDatabase(Path(base) / "examples"),
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.target, Phase.shrink],
        )
        @given(archive=archives())
        def one(archive: bytes) -> None:
            nonlocal count
            count += 1
            arena.check(archive)
            mark = signature(arena, archive)
            if mark not in seen and len(seen) < KEPT_MAX:
                seen.add(mark)
                (CORPUS / f"{hashlib.sha256(archive).hexdigest()[:16]}.tar").write_bytes(archive)

        while time.monotonic() < end:
            try:
                one()
            except BaseException:
                traceback.print_exc()
                return 1
            print(f"{count} archives, {len(seen)} outcomes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600))
