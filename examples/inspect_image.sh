#!/bin/sh
# Look at an image without running it: where it came from, what is in it, what each layer added.
#   inspect_image.sh MOUNTPOINT IMAGE        e.g. inspect_image.sh /run/fsd localhost/busybox:latest
set -eu
cd "$1/images/$2"

echo "names:    $(tr '\n' ' ' < names)"
echo "created:  $(cat created)"
echo "size:     $(cat size) bytes"
echo "config:   $(head -c 300 config.json)"
echo "system:   $(. ./rootfs/etc/os-release 2>/dev/null && echo "$NAME" || echo unknown)"
echo "used by:  $(for user in containers/*; do [ ! -e "$user" ] || head -n 1 "$user/names"; done | tr '\n' ' ')"
for layer in layers/*; do
    echo "layer $(basename "$layer"): $(head -c 12 "$layer/id"), $(wc -l < "$layer/changes") changes"
done
find rootfs/ -xdev -type f -perm /6000 | sed 's/^/set-ID program: /'
