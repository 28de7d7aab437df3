"""The tables of fsd's own state, column by column, and how an older file becomes a newer one.

``PRAGMA user_version`` holds the number of migrations that were applied. A migration only ever
adds; one that is released is never edited. Times are nanoseconds since the epoch, truth values
are 0 or 1, IDs are the full IDs of containers/storage.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    -- One row per snapshot. The subvolume is the truth: a row without one is dropped, and
    -- a subvolume without a row gets one when the history is next opened.
    CREATE TABLE snapshots (
        container_id TEXT NOT NULL,      -- container the snapshot was taken of; may be gone
        name         TEXT NOT NULL,      -- unique in the container; last part of the driver's key
        created_ns   INTEGER NOT NULL,   -- when it was taken
        reason       TEXT NOT NULL,      -- manual, write, timer, pre-rollback, found
        generation   INTEGER NOT NULL,   -- of the container's layer then; -1 when not known
        pinned       INTEGER NOT NULL DEFAULT 0,  -- 1: never removed before it is unpinned
        named        INTEGER NOT NULL DEFAULT 0,  -- 1: a person chose the name; retention leaves it
        PRIMARY KEY (container_id, name)
    ) WITHOUT ROWID;

    -- Stable numbers of views; they are part of the inode numbers a mount shows.
    CREATE TABLE views (
        number INTEGER PRIMARY KEY,      -- 1 up to 2**21 - 1
        key    TEXT NOT NULL UNIQUE      -- the view's key, e.g. containers/<id>
    );

    -- Operations of several steps that have begun and not ended.
    CREATE TABLE intents (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
        kind     TEXT NOT NULL,          -- which operation; its module knows how to end it
        details  TEXT NOT NULL,          -- what it works on, as a JSON object
        owner    TEXT NOT NULL,          -- process that began it: boot ID, pid, start time
        begun_ns INTEGER NOT NULL
    );

    -- Measured sizes, which cost a walk of the tree.
    CREATE TABLE sizes (
        key         TEXT NOT NULL PRIMARY KEY,  -- what was measured, e.g. layers/<id>/size
        generation  INTEGER NOT NULL,    -- of the layer when it was measured
        bytes       INTEGER NOT NULL,
        measured_ns INTEGER NOT NULL
    ) WITHOUT ROWID;

    -- What the burst policy must remember across restarts.
    CREATE TABLE bursts (
        container_id TEXT NOT NULL PRIMARY KEY,
        started_ns   INTEGER NOT NULL,   -- first mutation of the latest burst
        mutated_ns   INTEGER NOT NULL    -- latest mutation that was recorded
    ) WITHOUT ROWID;

    -- Choices people made for one object, which containers/storage has no place for.
    CREATE TABLE settings (
        object TEXT NOT NULL,            -- containers/<id>, images/<id>, layers/<id>
        key    TEXT NOT NULL,            -- on-write, pinned, ...
        value  TEXT NOT NULL,
        PRIMARY KEY (object, key)
    ) WITHOUT ROWID;
    """,
    """
    -- What objects hold, as measured in the background; whoever looks reads it here.
    CREATE TABLE measures (
        object      TEXT NOT NULL PRIMARY KEY,  -- containers/<id>, images/<id>, layers/<id>, trash/<entry>
        basis       TEXT NOT NULL,       -- what the figures depend on, as it was: generations, relatives
        size        INTEGER NOT NULL,    -- bytes, as containers/storage counts them
        exclusive   INTEGER,             -- bytes on disk nothing else refers to; NULL: not known
        shared      INTEGER,             -- bytes on disk others refer to as well; NULL: not known
        freed       INTEGER,             -- bytes its removal would free; NULL: not known
        method      TEXT NOT NULL,       -- how the last three were found
        measured_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)
