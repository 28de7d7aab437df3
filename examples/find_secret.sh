#!/bin/sh
# Find a text in every layer of a store, also in files that a later layer deletes or overwrites.
#   find_secret.sh MOUNTPOINT PATTERN
# Prints the layer, the images that carry it, and the file. Exit 1: found nothing.
set -u
cd "$1/layers" || exit 2
found=1
for layer in *; do
    # Only what the layer itself changes: "A /path" and "C /path"; what it inherits is another layer's.
    files=$(sed -n 's/^[AC] //p' "$layer/changes" | while IFS= read -r path; do
        [ -f "$layer/rootfs$path" ] && [ ! -L "$layer/rootfs$path" ] &&
            grep -lIe "$2" "$layer/rootfs$path"
    done)
    [ -n "$files" ] || continue
    found=0
    images=$(for user in "$layer"/used-by/*; do [ -e "$user/names" ] && head -n 1 "$user/names"; done | tr '\n' ' ')
    echo "$files" | sed "s|^[^/]*/rootfs|$(printf %.12s "$layer") ${images:-}|"
done
exit $found
