#!/bin/sh
# Build an image with nothing but mkdir, cp and echo: a base, some files, a name.
#   build_image.sh MOUNTPOINT BASE DIRECTORY NAME:TAG
# The content of DIRECTORY is copied over the root of BASE. podman can run the result.
set -eu
tree=$1 base=$2 directory=$3 name=$4
work="$tree/containers/build-$$"

mkdir "$work"
trap 'rmdir "$work"' EXIT
echo "$base" > "$work/from"
cp -a "$directory/." "$work/rootfs/"
cat "$work/changes"
echo "$name" > "$work/commit"
