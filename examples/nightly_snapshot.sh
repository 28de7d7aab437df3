#!/bin/sh
# Take a snapshot of containers and keep the last seven taken so; for cron or a systemd timer.
#   nightly_snapshot.sh MOUNTPOINT CONTAINER…
# Snapshots with a name stay until somebody removes them, so this removes its own old ones.
set -eu
tree=$1
shift
for container; do
    snapshots="$tree/containers/$container/snapshots"
    mkdir "$snapshots/nightly-$(date -u +%Y%m%dT%H%M%S%N)"
    ls "$snapshots" | grep '^nightly-' | sort | head -n -7 | while read -r old; do
        rmdir "$snapshots/$old"
    done
    echo "$container: $(ls "$snapshots" | grep -c '^nightly-') nightly snapshots"
done
