#!/usr/bin/env bash
# Debian packages that only CI needs, beyond what the README names. Root. Idempotent.
set -euo pipefail
packages=(clang libclang-rt-14-dev) # fuzzing and sanitizers
packages+=(prometheus)              # promtool, and panels over a live server
packages+=(systemd)                 # systemd-analyze judges the unit; nothing of it runs
packages+=(buildah podman runc debootstrap) # the image, built and run with the guide's flags
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "» installing ${missing[*]}"
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then # programs are wanted, services are not
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
fi
