"""The store: layers, images and containers in the on-disk format of containers/storage.

::

    store.py        Store: the whole API, assembled from
      core.py         opening, tables, locks, transactions, catalog; reloading.py other options meanwhile
      queries.py      lookups by ID, name, digest
      creation.py     new layers, images, containers, on growth.py, staging.py and idmaps.py
      deletion.py     removal and the rules that forbid it
      attributes.py   names, metadata, big data, private directories
      mounts.py       mount counts
      diffs.py        changes, diffs, sizes
      check.py        consistency, repair, garbage collection; mending.py what other tools stumble over
      dedup.py        identical files share their blocks
      additional_layers.py  layers of additional layer stores
    catalog.py      the whole store at one moment, without locks; watching.py two moments compared
    glance.py       the tables as parsed JSON alone, for programs that look once and end
    layers.py  images.py  containers.py      one table each, on
    table.py  segment.py  view.py            records in JSON files under a lock, saved atomically by
    saving.py  replacing.py                  saves on their way; new contents of files, waited for together
    lockfile.py     the lock protocol and its stamps; locks.py who holds which
    records.py  codec.py                     records, and their JSON byte for byte
    bigdata.py  names.py  ids.py  idranges.py  options.py  config.py  durable.py  errors.py
    history.py      snapshots of containers and going back to them, on
      snapshots.py  their copies and rows; holders.py who is at work; retention.py what may go
    trash.py        removal that can be undone, on trash_entries.py (what is kept) and trash_moves.py (how)
    orphans.py      content nothing names; prune.py removal in two steps; pins.py what nothing removes
    sizes.py        what objects hold and free; limits.py how much they may; timer.py hourly snapshots
    ballast.py      space to remove things on a full disk
    forgetting.py   state of what other tools removed is let go
    state.py        fsd's own state, on state_db.py (SQLite) and state_schema.py (its columns);
                    state_copy.py a copy of it, where it cannot be written
    health.py  metrics.py                    what is wrong, and figures
    objects.py      what people call an object; drafts.py containers that take the writes to an image
    fill.py         the content of an empty container, from any source; refill.py of an empty layer
    erase.py        one big data item removed
    comparison.py   what differs between any two trees; peek.py a look into one
    oci.py          images from root filesystems, on oci_config.py (documents) and blobs.py
    archives.py     image archives in, on archive_files.py and placed.py; commit.py containers to images
    packing.py      images out, and into other stores, on layout.py and virtual.py

Synchronous; usable without the rest of fsd. It builds on ``drivers`` and never on ``fsd``.
"""
