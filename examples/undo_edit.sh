#!/bin/sh
# Undo the last edit of a container: show what it changed, then go back to before it.
#   undo_edit.sh MOUNTPOINT CONTAINER
# The state that is left behind is kept as the snapshot pre-rollback-TIME, so this can be undone too.
set -eu
cd "$1/containers/$2"

last=
for snapshot in $(ls snapshots); do
    [ "$(cat "snapshots/$snapshot/reason")" = write ] && last=$snapshot
done
[ -n "$last" ] || { echo "no write has taken a snapshot of $2" >&2; exit 1; }

echo "since $(cat "snapshots/$last/created"):"
cat "snapshots/$last/changes"
echo "$last" > rollback
echo "back at $last; the edit is kept as $(ls snapshots | grep '^pre-rollback-' | tail -n 1)"
