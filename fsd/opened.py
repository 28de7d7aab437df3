"""An open synthetic file: what is read from it, and the work that writing to it asks for.

A value is put to use while it is written: shells look at how a write went, but not at how the close did that
follows. The kernel flushes a file whenever somebody closes a copy of its descriptor, which a shell does as
soon as it has made the copy a command writes to. What a sink took is put to use when the process that opened
the file has no descriptor of it any more, so once, and only what is there at the end. What a process had
copied in when a signal ended it is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from fsd.contents import Rendered
from fsd.processes import holds_to_write, was_killed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pyfuse3 import InodeT

    from fsd.contents import Content, Sink
    from fsd.nodes import Node

    Run = Callable[..., Awaitable[Any]]
    """Calls a function with its arguments in a worker thread."""


@dataclass(slots=True)
class Opened:
    """An open synthetic file: what it is read from, and the work its writes asked for.

    A ``sink`` takes what is written where that is more than one value; ``fresh`` says that it has not been
    applied yet. ``emptied`` says of another file that it was truncated and nothing was written since.
    ``working`` is held while either, or a value, is put to use, and ``failure`` is kept: a process that
    forks flushes the file once for each copy of the descriptor, and every one of them is told how it went.
    """

    node: Node
    inode: InodeT
    pid: int
    uid: int
    append: bool
    impatient: bool = False
    content: Content = field(default_factory=lambda: Rendered(b""))
    sink: Sink | None = None
    fresh: bool = False
    emptied: bool = False
    working: trio.Lock = field(default_factory=trio.Lock)
    failure: Exception | None = None

    def begin_empty(self) -> None:
        """It was made, or truncated by whoever opened it: that alone is a command where it may be empty."""
        self.fresh = self.node.kind.takes_empty and self.sink is not None
        self.emptied = self.node.kind.takes_empty and self.sink is None

    async def write(self, offset: int, data: bytes, run: Run) -> bool:
        """Give data to the sink; without one they are a value, and what that asks for is done now.

        Returns:
            Whether something was done.
        """
        if self.sink is None:
            await self._put_to_use(data, run)
            return True
        try:
            await run(self.sink.write_at, offset, data)
        except BaseException:
            self.fresh = False  # whoever was refused a part wants nothing of the rest
            raise
        self.fresh, self.failure = True, None
        return False

    async def _put_to_use(self, data: bytes, run: Run) -> None:
        async with self.working:
            self.emptied = False  # refused or not, it is no longer about nothing
            work = await run(self.node.kind.accept, self.node, data, self.append)
            await run(work)
            self.failure = None

    async def truncate(self, size: int, run: Run) -> None:
        """Cut what was given to the sink; without one only a file that may be empty takes notice."""
        if self.sink is not None:
            await run(self.sink.truncate, size)
            self.fresh = self.fresh or self.node.kind.takes_empty
        elif self.node.kind.takes_empty and size == 0:
            self.emptied = True

    async def flush(self, run: Run, *, last: bool = False) -> bool:
        """Put to use what the sink took, or that the file was emptied; raises what went wrong each time.

        Args:
            last: nobody has a descriptor any more.

        Returns:
            Whether something was done.
        """
        async with self.working:
            if (self.fresh or self.emptied) and not await self._unfinished(last=last):
                try:
                    return await self._finish(run)
                except Exception as exc:
                    self.failure = exc
            if self.failure is not None:
                raise self.failure
            return False

    async def _unfinished(self, *, last: bool) -> bool:
        """Whether more may be written: the process that opened the file still has it open for that."""
        return not last and await trio.to_thread.run_sync(holds_to_write, self.pid, self.inode)

    async def _finish(self, run: Run) -> bool:
        """Whether what was written or truncated was wanted, so that it was put to use."""
        if self.sink is None:
            self.emptied = False
            await run(await run(self.node.kind.accept, self.node, b"", False))
            return True
        self.fresh = False
        if await trio.to_thread.run_sync(was_killed, self.pid):
            return False
        await run(self.sink.apply)
        return True

    async def close(self, run: Run) -> None:
        """Nobody has it open any more; what was not put to use by then, because two were writing, is now."""
        try:
            if self.fresh or self.emptied:
                await self.flush(run, last=True)
        finally:
            await self.drop(run)

    async def drop(self, run: Run) -> None:
        """Let go of it; what was written and not flushed yet is thrown away."""
        if self.sink is not None:
            await run(self.sink.close)
        if self.content.blocking:
            await trio.to_thread.run_sync(self.content.close)
        else:
            self.content.close()
