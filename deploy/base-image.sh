#!/usr/bin/env bash
# A Debian base image made by debootstrap, for machines that reach a Debian mirror but no image registry:
#     deploy/base-image.sh [NAME]       default localhost/inferno-base:bookworm
# Package sources, proxies and the certificate bundle are this machine's, so that a build on it reaches what this
# machine reaches; nothing of them stays in the image that the Dockerfile makes of it but the base's own files.
# Root, debootstrap and buildah. Does nothing when the image is there.
set -euo pipefail
name=${1:-localhost/inferno-base:bookworm}
export BUILDAH_ISOLATION=chroot
if buildah inspect --type image "$name" >/dev/null 2>&1; then
    exit 0
fi
sources() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true
}
mirror=$(sources | grep -v '^#' | grep -oE '(https?|file)://[^ ]*/debian/?' | head -n 1 || true)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >/dev/null
for path in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d; do
    [[ -e $path ]] && cp -a "$path" "$root/etc/apt/"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/build-ca.pem"
printf '[global]\ncert = /etc/ssl/certs/build-ca.pem\n' >"$root/etc/pip.conf"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
container=$(buildah from scratch)
buildah copy -q "$container" "$root" / >/dev/null
buildah config --env SSL_CERT_FILE=/etc/ssl/certs/build-ca.pem "$container"
buildah commit -q --rm "$container" "$name" >/dev/null
