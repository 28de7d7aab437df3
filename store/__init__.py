"""The store: layers, images and containers in the on-disk format of containers/storage.

::

    store.py        Store: the whole API, assembled from
      core.py         opening, tables, locks, transactions, catalog
      queries.py      lookups by ID, name, digest
      creation.py     new layers, images, containers, on growth.py and idmaps.py
      deletion.py     removal and the rules that forbid it
      attributes.py   names, metadata, big data, private directories
      mounts.py       mount counts
      diffs.py        changes, diffs, sizes
      check.py        consistency, repair, garbage collection
    catalog.py      the whole store at one moment, without locks
    layers.py  images.py  containers.py      one table each, on
    table.py        records in JSON files under a lock, saved atomically
    lockfile.py     the lock protocol and its stamps
    records.py  codec.py                     records, and their JSON byte for byte
    bigdata.py  names.py  ids.py  idranges.py  config.py  durable.py  errors.py
    history.py  fill.py  oci.py  state_db.py snapshots, filling containers, image archives, own state

Synchronous; usable without the rest of fsd. It builds on ``drivers`` and never on ``fsd``.
"""
