"""How much work nobody waits for may cost: a bucket of seconds that fills slowly."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Budget:
    """At most ``share`` of the time in the long run, and ``burst`` seconds at once. Thread-safe.

    Work is begun while anything is left and may overdraw; what follows waits until that is paid back.
    """

    def __init__(self, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._seen = clock()
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds that may be spent now; negative while overdrawn."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._seen) * self._share)
            self._seen = now
            return self._left

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of a block."""
        began = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._left -= self._clock() - began
