"""``up``, ``down``, ``status`` and ``health``: the daemon seen from outside.

``up`` starts ``up --foreground`` as a process of its own and waits for its readiness notification, the same
that systemd gets. The foreground process owns the pool, the run-file and the mount; what ends it also undoes
them, except the pool, which ``down`` detaches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from fsd import mounts, output
from fsd.cli_store import (
    at_a_glance,
    daemon_of,
    open_session,
    open_store,
    pool_of,
    store_exists,
    store_options,
)
from fsd.mounts import MountError

if TYPE_CHECKING:
    import argparse

    from fsd.pool import Pool
    from fsd.runfile import Running
    from store.config import StoreOptions
    from store.health import Finding

STOP_SECONDS = 30.0
TABLES = ("layers", "images", "containers")


# -- down ------------------------------------------------------------------------------------------


def stop(args: argparse.Namespace) -> int:
    """``fsd down``; nothing to do is success."""
    options = store_options(args)
    running = daemon_of(options)
    users = []
    if running is not None:
        users = [user for user in mounts.holders(running.mountpoint) if user.what.startswith("fd")]
        _end(running, force=args.force)
    elif (usual := mounts.default_mountpoint()) is not None:
        mounts.detach_dead(usual)
    pool = pool_of(options)
    detached = pool is not None and os.geteuid() == 0 and pool.detach()
    if pool is not None and detached:
        pool.await_release(users)
    _say_stopped(args, running, detached)
    return 0


def _end(running: Running, *, force: bool) -> None:
    """Ask the daemon to unmount and end, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + (5 if force else STOP_SECONDS)
    while running.alive:
        if time.monotonic() > deadline:
            _give_up(running, force=force)
            break
        time.sleep(0.02)
    mounts.detach_dead(running.mountpoint)
    if running.mountpoint == mounts.default_mountpoint():
        with contextlib.suppress(OSError):
            running.mountpoint.rmdir()


def _give_up(running: Running, *, force: bool) -> None:
    if not force:
        users = ", ".join(map(str, mounts.holders(running.mountpoint)))
        raise MountError(
            f"the daemon (pid {running.pid}) did not end within {STOP_SECONDS:.0f} s"
            f"{f'; {running.mountpoint} is in use by {users}' if users else ''}; "
            "fsd down --force ends it anyway"
        )
    with contextlib.suppress(MountError):
        mounts.unmount(running.mountpoint, lazy=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGKILL)
    while running.alive:
        time.sleep(0.02)


def _say_stopped(args: argparse.Namespace, running: Running | None, detached: bool) -> None:
    if args.json:
        output.print_json({"stopped": running is not None, "pool-detached": detached})
        return
    print(f"unmounted {running.mountpoint}" if running else "fsd is not up")
    if detached:
        print("detached the pool; its content stays for the next fsd up")


# -- status ----------------------------------------------------------------------------------------


def show_status(args: argparse.Namespace) -> int:
    """``fsd status``."""
    options = store_options(args)
    running = daemon_of(options)
    facts = _facts(options, running)
    pool = pool_of(options)
    if pool is None or pool.device is not None:  # a question does not attach a pool
        facts |= _counts(args, options)
    if args.json:
        output.print_json(facts)
    else:
        output.print_table([[key, _shown(value)] for key, value in facts.items()], ["FACT", "VALUE"])
    return 0 if running is not None else 1


def _facts(options: StoreOptions, running: Running | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"state": "up" if running else "down"}
    if running is not None:
        if not mounts.answers(running.mountpoint / "control"):
            facts["state"] = "not answering"
        facts |= {"mountpoint": str(running.mountpoint), "pid": running.pid, "since": _iso(running.started)}
    facts |= {"graphroot": str(options.graphroot), "runroot": str(options.runroot)}
    pool = pool_of(options)
    if pool is not None:
        facts["pool"] = _pool_facts(pool)
    return facts


def _pool_facts(pool: Pool) -> dict[str, Any]:
    state = "attached" if pool.device else "detached" if pool.exists else "not made yet"
    facts: dict[str, Any] = {"image": str(pool.image), "state": state, "device": pool.device}
    if pool.device is not None:
        usage = pool.usage()
        facts |= {"size": usage.size, "used": usage.used, "free": usage.free, "allocated": usage.allocated}
    return facts


def _counts(args: argparse.Namespace, options: StoreOptions) -> dict[str, Any]:
    """Facts only the store knows; what stops it from being read is a fact too."""
    glance = at_a_glance(options, TABLES)
    if glance is not None:  # it would not be, if a record were broken
        return {
            "driver": glance.driver,
            **{table: len(glance.tables[table]) for table in TABLES},
            "broken": 0,
        }
    if not store_exists(options):
        return {"store": "none yet"}
    with open_store(args) as store:
        catalog = store.catalog()
        return {
            "driver": store.driver_name,
            **{table: len(getattr(catalog, table)) for table in TABLES},
            "broken": len(catalog.broken),
        }


def _shown(value: Any) -> str:
    """A fact for people."""
    if not isinstance(value, dict):
        return str(value)
    if value["device"] is None:
        return f"{value['image']} ({value['state']})"
    used, size = output.human_size(value["used"]), output.human_size(value["size"])
    return f"{value['image']} on {value['device']}, {used} of {size} used"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# -- health ----------------------------------------------------------------------------------------


def show_health(args: argparse.Namespace) -> int:
    """``fsd health``: one line a check; exit 1 when any says ``fail``."""
    options = store_options(args)
    running = daemon_of(options)
    checks = [*_daemon_checks(running), *_pool_checks(options), *_store_checks(args, options)]
    if running is not None and ("mount", "ok") in [check[:2] for check in checks]:
        checks += _told_by_the_daemon(running, {name for name, _, _ in checks})
    if args.json:
        output.print_json([{"check": name, "result": result, "text": text} for name, result, text in checks])
    else:
        output.print_table(checks, ["CHECK", "RESULT", "TEXT"])
    return 1 if any(result == "fail" for _, result, _ in checks) else 0


Check = tuple[str, str, str]


def _daemon_checks(running: Running | None) -> list[Check]:
    if running is None:
        return [("daemon", "fail", "not up: fsd up starts it")]
    checks = [("daemon", "ok", f"pid {running.pid} since {_iso(running.started)}")]
    if mounts.answers(running.mountpoint / "control/status"):
        return [*checks, ("mount", "ok", f"{running.mountpoint} answers")]
    return [
        *checks,
        ("mount", "fail", f"{running.mountpoint} does not answer: fsd down --force, then fsd up"),
    ]


def _told_by_the_daemon(running: Running, known: set[str]) -> list[Check]:
    """What only the daemon can tell: the lines of ``control/health`` about other subjects."""
    told = []
    for line in (running.mountpoint / "control/health").read_text().splitlines():
        result, _, rest = line.partition(" ")
        subject, _, text = rest.strip().partition(": ")
        if subject not in known:
            told.append((subject, result, text))
    return told


def _pool_checks(options: StoreOptions) -> list[Check]:
    pool = pool_of(options)
    if pool is None:
        return []
    if pool.device is None:
        state = "is not attached: fsd up attaches it" if pool.exists else "does not exist: fsd up makes it"
        return [("pool", "fail", f"{pool.image} {state}")]
    usage = pool.usage()
    if usage.promised > usage.host_free:
        short = output.human_size(usage.promised - usage.host_free)
        return [
            (
                "pool",
                "warn",
                f"{pool.image.parent} lacks {short} to back the whole pool: free some space there",
            )
        ]
    return [("pool", "ok", f"{output.human_size(usage.free)} free of {output.human_size(usage.size)}")]


def _store_checks(args: argparse.Namespace, options: StoreOptions) -> list[Check]:
    from store.health import examine as of_store

    if not store_exists(options):
        return [("store", "fail", "there is none yet: fsd up makes it")]
    try:
        with open_session(args) as session:
            return [_check_of(one) for one in of_store(session.history)]
    except Exception as error:  # that the store cannot be opened is what was asked for
        return [("store", "fail", str(error))]


def _check_of(found: Finding) -> Check:
    """What the store found; records that cannot be used are a failure."""
    if found.ok:
        return found.subject, "ok", found.text
    return found.subject, "fail" if found.subject == "records" else "warn", f"{found.text}; {found.remedy}"
