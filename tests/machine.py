"""Run the machine of ``test_store_machine.py`` until it has done that many steps.

::

    python -m tests.machine DRIVER STEPS
"""

from __future__ import annotations

import sys

from tests.support import loops
from tests.test_store_machine import run

LENGTH = 50
"""Steps of one machine at most."""
EXAMPLES = 5
"""Machines between two reports."""


def main() -> int:
    """Print how many steps were done so far, again and again; any deviation ends it with a traceback."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    driver, wanted = sys.argv[1], int(sys.argv[2])
    home, done = loops.new_run(), 0
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=2 << 30) as top:
            while done < wanted:
                done += run(top, driver, examples=EXAMPLES, length=LENGTH)
                print(f"{driver}: {done} steps without a deviation", flush=True)
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
