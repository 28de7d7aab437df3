#!/bin/sh
# Copy an image to another tool's store, through the image's OCI layout; nothing is exported first.
#   copy_image.sh MOUNTPOINT IMAGE DESTINATION
# IMAGE is REPOSITORY:TAG as it is listed. DESTINATION is whatever skopeo takes, such as
#   containers-storage:[overlay@/var/lib/other+/run/other]localhost/app:1
#   docker-archive:/tmp/app.tar:app:1          oci:/srv/layout:app
set -eu
tag=${2##*:}
skopeo --insecure-policy copy --quiet "oci:$1/images/$2/oci:$tag" "$3"
echo "copied $(cat "$1/images/$2/digest")"
