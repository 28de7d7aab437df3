"""Random requests do not harm the data plane; ``tests.fuzz.plane`` goes on for long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_fuzz_plane_survives_random_requests() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.plane", "20000", "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "20000 requests" in done.stdout
