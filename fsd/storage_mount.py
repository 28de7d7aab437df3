"""Mounting, shutdown and status on the containers-storage command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.errors import BadOption
from fsd.storage_errors import EXPECTED, text_of
from store.errors import ImageUnknown, StoreError

if TYPE_CHECKING:
    from fsd.storage_context import Run


def mount(run: Run) -> int:
    """``mount``: containers or layers; images read-only with ``--ro``."""
    _ = run.store
    results = []
    for key in run.args:
        path, text = "", ""
        try:
            if run.on("ro"):
                path = str(run.store.mount_image(key, ("noexec", "nosuid"), run.text("label")))
            else:
                path = str(run.store.mount(key, run.text("label")))
        except EXPECTED as error:
            text = _mount_text(run, error, key)
        results.append({"id": key, "mountpoint": path, "error": text})
    if run.json:
        run.dump(results)
    else:
        for result in results:
            if result["error"]:
                run.complain(f"{result['error']} while mounting {result['id']}")
            run.say(f"{result['mountpoint']}\n")
    return int(any(result["error"] for result in results))


def _mount_text(run: Run, error: Exception, key: str) -> str:
    if isinstance(error, BadOption):
        return f"{run.store.driver_name} driver does not support mount options"
    if isinstance(error, ImageUnknown):
        return f'locating image with ID "{key}": {error.original}'
    return text_of(error, call="stat")


def unmount(run: Run) -> int:
    """``unmount``: take back one mount of each, or all with ``--force``."""
    _ = run.store
    results = []
    for key in run.args:
        text = ""
        try:
            if not run.store.unmount(key, run.on("force")):
                run.say(f"{key} mountpoint unmounted\n")
        except EXPECTED as error:
            text = _unmount_image(run, key, text_of(error))
        results.append({"id": key, "error": text})
    return _report(run, results, "while unmounting {}")


def _unmount_image(run: Run, key: str, text: str) -> str:
    """Unmount an image; the error of the first attempt where it is none."""
    try:
        image = run.store.image(key)
        if image.layer:
            run.store.unmount(image.layer, run.on("force"))
    except StoreError:
        return text
    return ""


def mounted(run: Run) -> int:
    """``mounted``: which of the containers or layers are mounted."""
    _ = run.store
    results = []
    for key in run.args:
        text = ""
        try:
            if run.store.mounted(key) > 0:
                run.say(f"{key} mounted\n")
        except EXPECTED as error:
            text = text_of(error)
        results.append({"id": key, "error": text})
    return _report(run, results, "checking if {} is mounted")


def _report(run: Run, results: list[dict[str, str]], doing: str) -> int:
    if run.json:
        run.dump(results)
    else:
        for result in results:
            if result["error"]:
                run.complain(f"{result['error']} {doing.format(result['id'])}")
    return int(any(result["error"] for result in results))


def shutdown(run: Run) -> int:
    """``shutdown``: let the driver undo its mounts; with ``--force`` it ends, unlike in the original."""
    try:
        run.store.shutdown(run.on("force"))
    except EXPECTED as error:
        if not run.json:
            run.fail(f"shutdown: a layer is mounted: {text_of(error)}")
        run.dump({})
        return 1
    if run.json:
        run.dump("")
    return 0


def status(run: Run) -> int:
    """``status``: where the store is, and what its driver tells."""
    store = run.store
    pairs = [
        ["Root", str(store.graphroot)],
        ["Run Root", str(store.runroot)],
        ["Driver Name", store.driver_name],
        ["Driver Options", f"[{' '.join(store.options.driver_options)}]"],
        *([label, value] for label, value in store.status()),
    ]
    return _pairs(run, pairs)


def version(run: Run) -> int:
    """``version``: nothing, as in the original."""
    return _pairs(run, [[label, value] for label, value in run.store.version()])


def _pairs(run: Run, pairs: list[list[str]]) -> int:
    if run.json:
        run.dump(pairs)
    else:
        for label, value in pairs:
            run.complain(f"{label}: {value}")
    return 0
