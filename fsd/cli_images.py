"""Verbs that bring images in and out: archives, layouts, other stores, registries."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fsd import output
from fsd.cli_rows import object_row, say, say_all
from fsd.cli_store import open_session, open_store
from fsd.mounts import MountError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from store.records import Image
    from store.store import Store
    from store.virtual import VirtualFile

SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image without an environment of its own gets."""
READ_TWICE = 2
"""An archive is read for its digests first, and unpacked then."""


class ToolError(MountError):
    """Another program is missing, or failed; the text carries its own words."""


@contextlib.contextmanager
def archive_at(path: str, label: str = "importing") -> Iterator[BinaryIO]:
    """The archive to read; a file's progress shows on a terminal."""
    from store.archive_files import counted

    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        with output.Progress(label, total, passes=READ_TWICE) as progress:
            yield counted(file, progress.add)


def write_out(
    args: argparse.Namespace, content: VirtualFile, path: str | None, label: str = "writing"
) -> int:
    """Write content to a file, or to standard output, with its progress on a terminal."""
    from fsd.cli import Usage
    from store.packing import pour, write_file

    to_stdout = path in (None, "-")
    if to_stdout and sys.stdout.isatty():
        raise Usage("an archive is not written to a terminal; name a file")
    with output.Progress(label, content.size) as progress:
        if path is None or to_stdout:
            pour(content, sys.stdout.buffer, progress.add)
            return 0
        write_file(content, Path(path), progress.add)
    return say(args, {"file": path, "size": content.size})


def import_image(args: argparse.Namespace) -> int:
    """``fsd import``."""
    from store.oci import import_rootfs

    with archive_at(args.archive) as archive, open_store(args, make_pool=not args.no_pool) as store:
        image = import_rootfs(store, archive, args.name, config=_run_config(args), comment=args.message)
    return say(args, object_row("images", image.id, image.names), image.id)


def _run_config(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the image's ``config`` that the command line sets."""
    given = {
        "Cmd": args.cmd and shlex.split(args.cmd),
        "Entrypoint": args.entrypoint and shlex.split(args.entrypoint),
        "Env": args.env and [SEARCH_PATH, *args.env],
        "Labels": args.label and dict(_pair(label) for label in args.label),
        "User": args.user,
        "WorkingDir": args.workdir,
    }
    return {key: value for key, value in given.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def export_tree(args: argparse.Namespace) -> int:
    """``fsd export``."""
    from store.comparison import compared, side_of
    from store.virtual import of_stream

    with open_session(args) as session:
        side = side_of(session.store, args.object)
        with compared(session.store, side, None) as found:
            return write_out(args, of_stream(found.archive_size(), found.archive), args.output, "exporting")


def commit_container(args: argparse.Namespace) -> int:
    """``fsd commit``."""
    from store.commit import commit
    from store.drafts import end_draft

    with open_session(args) as session:
        image = commit(
            session.store,
            args.container,
            args.name or "",
            author=args.author,
            comment=args.message,
            state=session.history.state,
        )
        end_draft(session.history.state, session.store.container(args.container).id)
    return say(args, object_row("images", image.id, image.names), image.id)


# -- archives and layouts --------------------------------------------------------------------------


def load(args: argparse.Namespace) -> int:
    """``fsd load``."""
    from store.archives import layout_size, load_archive, load_layout

    if os.path.isdir(args.archive):
        layout = Path(args.archive)
        with (
            open_store(args, make_pool=not args.no_pool) as store,
            output.Progress("loading", layout_size(layout), passes=READ_TWICE) as progress,
        ):
            return _say_images(args, load_layout(store, layout, progress=progress.add))
    with (
        archive_at(args.archive, "loading") as archive,
        open_store(args, make_pool=not args.no_pool) as store,
    ):
        return _say_images(args, load_archive(store, archive))


def save(args: argparse.Namespace) -> int:
    """``fsd save``."""
    from store.packing import packed

    with open_store(args, make=False) as store:
        return write_out(args, packed(store, args.image, args.format), args.output, "saving")


def _say_images(args: argparse.Namespace, images: Sequence[Image]) -> int:
    rows = [object_row("images", image.id, image.names) for image in images]
    return say_all(args, rows, (image.id for image in images))


# -- other places ----------------------------------------------------------------------------------


def copy(args: argparse.Namespace) -> int:
    """``fsd copy``: to or from this store."""
    from fsd.cli import Usage
    from store.packing import REGISTRY, copy_in, copy_out, parse_place, size_of, size_of_source

    source, target = parse_place(getattr(args, "from")), parse_place(args.to)
    if not source.here and not target.here:
        raise Usage("copy: FROM or TO is an image of this store")
    if source.here and target.here:
        from store import objects

        with open_store(args, make=False) as store:
            return _say_images(args, [objects.tag(store, source.name, [target.name])])
    with open_store(args, make=not source.here, make_pool=not args.no_pool) as store:
        if REGISTRY in (source.kind, target.kind):
            inward = source.kind == REGISTRY
            return _registry(
                args,
                store,
                target.name if inward else source.name,
                (source if inward else target).location,
                inward,
            )
        if source.here:
            total = size_of(store, source.name, target)
            with output.Progress("copying", total) as progress:
                copy_out(store, source.name, target, progress.add)
            return say(args, {"copied": source.name, "to": args.to, "size": total})
        with output.Progress("copying", size_of_source(source), passes=READ_TWICE) as progress:
            images = copy_in(store, source, progress.add)
        if target.name:
            from store import objects

            images = [objects.tag(store, images[0].id, [target.name]), *images[1:]]
        return _say_images(args, images)


def pull(args: argparse.Namespace) -> int:
    """``fsd pull``."""
    name = args.name.removeprefix("docker://")
    with open_store(args, make_pool=not args.no_pool) as store:
        return _registry(args, store, name, name, True)


def push(args: argparse.Namespace) -> int:
    """``fsd push``: to the name the image was called by, where no other is given."""
    from store.names import candidates
    from store.objects import find_object

    with open_store(args, make=False) as store:
        found = find_object(store, args.image, ("images",))
        own = next((name for name in candidates(args.image) if name in found.record.names), found.label)
        return _registry(args, store, found.id, (args.name or own).removeprefix("docker://"), False)


def _registry(args: argparse.Namespace, store: Store, image: str, remote: str, inward: bool) -> int:
    """Let skopeo, which speaks to registries, copy an image between one and this store."""
    from store.names import normalize
    from store.objects import find_object

    if inward:
        image = normalize(image or remote, short="docker.io")
    else:
        image = find_object(store, image, ("images",)).id
    place = f"{store.driver_name}@{store.graphroot}+{store.runroot}"
    here = f"containers-storage:[{place}]{'' if inward else '@'}{image}"
    there = f"docker://{remote}"
    _skopeo(args, *((there, here) if inward else (here, there)), "--src" if inward else "--dest")
    found = find_object(store, image, ("images",)).record
    return say(args, object_row("images", found.id, found.names), found.id)


def _skopeo(args: argparse.Namespace, source: str, target: str, side: str) -> None:
    program = shutil.which("skopeo")
    if program is None:
        raise ToolError("skopeo is not installed, and registries are its work: apt install skopeo")
    argv = [program, *(["--insecure-policy"] if args.insecure_policy else []), "copy"]
    if args.tls_verify:
        argv.append(f"{side}-tls-verify={args.tls_verify}")
    if args.authfile:
        argv.append(f"--authfile={args.authfile}")
    if args.creds:
        argv += [f"{side}-creds", args.creds]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(
        [*argv, source, target], stdout=shown, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        said = _message(done.stderr.decode(errors="replace"))
        raise ToolError(f"skopeo: {said or f'it ended with {done.returncode}'}")


def _message(log: str) -> str:
    """The text of the last line of a log, which is ``time="…" level=fatal msg="…"`` where nobody watches."""
    import json

    line = (log.strip().splitlines() or [""])[-1]
    quoted = re.search(r' msg=("(?:[^"\\]|\\.)*")', line)
    if quoted is None:
        return line
    with contextlib.suppress(ValueError):
        return str(json.loads(quoted[1]))
    return quoted[1].strip('"')
