"""Comparison of layers on the containers-storage command line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from drivers.base import ChangeKind, Compression
from drivers.errors import IntegrityError
from fsd.storage_context import write_all
from fsd.storage_data import layer_of
from fsd.storage_errors import text_of

if TYPE_CHECKING:
    from fsd.storage_context import Run

_KINDS = {ChangeKind.MODIFIED: (0, "Modify"), ChangeKind.ADDED: (1, "Add"), ChangeKind.DELETED: (2, "Delete")}
_PIECE = 1 << 20


def _pair(run: Run) -> tuple[str, str]:
    """IDs of the layer and of what it is compared with; empty for its parent."""
    layer = layer_of(run, run.args[0])
    return layer.id, layer_of(run, run.args[1]).id if len(run.args) > 1 and run.args[1] else ""


def changes(run: Run) -> int:
    """``changes``: what differs, sorted by path (the original's order is random)."""
    found = run.store.changes(*_pair(run))
    if run.json:
        records = [{"Path": _text(c.path), "Kind": _KINDS[c.kind][0]} for c in found]
        run.dump(records or None)
        return 0
    run.say("".join(f"{_KINDS[c.kind][1]} {quoted(c.path)}\n" for c in found))
    return 0


def diffsize(run: Run) -> int:
    """``diffsize``: bytes of file content that differ, always counted anew."""
    layer_id, other_id = _pair(run)
    run.say(f"{run.store.computed_diff_size(layer_id, other_id)}\n")
    return 0


def diff(run: Run) -> int:
    """``diff``: the differences as a layer archive."""
    for flag, name in (("xz", "tar.xz"), ("bzip2", "tar.bz2")):
        if run.on(flag):
            run.fail(f"unsupported compression format {name}")
    compression = None
    if run.on("uncompressed"):
        compression = Compression.NONE
    if run.on("gzip"):
        compression = Compression.GZIP
    layer_id, other_id = _pair(run)
    with ExitStack() as stack:
        target = 1
        if path := run.text("file"):
            try:
                target = stack.enter_context(open(path, "wb", buffering=0)).fileno()
            except OSError as error:
                run.fail(text_of(error))
        stream = stack.enter_context(run.store.diff(layer_id, other_id, compression))
        try:
            while piece := stream.read(_PIECE):
                write_all(target, piece)
        except IntegrityError as error:
            run.fail(f"file integrity checksum failed for {quoted(error.name)}" if error.name else str(error))
    return 0


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")


_SHORT = {7: "a", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t", 11: "v", 34: '"', 92: "\\"}


def quoted(path: bytes) -> str:
    """A path in double quotes as Go's ``%q`` has it: escapes for what is not printable."""
    out = []
    for char in path.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if code in _SHORT:
            out.append(f"\\{_SHORT[code]}")
        elif char.isprintable():
            out.append(char)
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x20 or code == 0x7F:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'
