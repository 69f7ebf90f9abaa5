#!/usr/bin/env bash
# Installs the Debian packages with the programs that the tests run the NBD server against. Idempotent.
set -euo pipefail

# package and one program of it
wanted=(
  "ca-certificates update-ca-certificates"
  "e2fsprogs mkfs.ext4"
  "fio fio"
  "libnbd-bin nbdinfo"
  "nbdkit nbdkit"
  "openssl openssl"
  "qemu-utils qemu-img"
  "xfsprogs mkfs.xfs"
)
missing=()
for line in "${wanted[@]}"; do
  read -r package program <<<"$line"
  command -v "$program" >/dev/null || [[ -x "/usr/sbin/$program" ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then exit 0; fi

if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
  echo "The tests need programs of these Debian packages: ${missing[*]}" >&2
  echo "Install them (on Debian, as root: apt-get install -y ${missing[*]}) and run this again." >&2
  exit 1
fi
echo "==> Debian packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
options=(-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300)
apt-get install "${options[@]}" "${missing[@]}" || {
  apt-get update -qq
  apt-get install "${options[@]}" "${missing[@]}"
}
