#!/bin/bash
# Installs what the fault rigs need (Debian, as root). syslog-ng's package conflicts with rsyslog's, so it is
# unpacked into a cache folder instead, with the libraries that it alone needs.
set -euo pipefail

packages=(strace nbdkit libnbd-bin fuse3 xfsprogs e2fsprogs util-linux rsyslog netcat-openbsd)
cache=${FAULTS_CACHE:-$HOME/.cache/tailsrv-faults}

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

if [[ ! -x $cache/syslog-ng/usr/sbin/syslog-ng ]]; then
    mkdir -p "$cache/packages" "$cache/syslog-ng"
    apt-cache show syslog-ng-core >/dev/null 2>&1 || apt-get update -q
    (
        cd "$cache/packages"
        apt-get download -q syslog-ng-core libivykis0 libnet1 libwrap0 libjson-c5 libpcre3
        for package in *.deb; do dpkg -x "$package" "$cache/syslog-ng"; done
    )
fi
