#!/bin/sh
# Installs what the kernel tests need: the User-Mode-Linux guest (used where this machine's kernel has no nbd), the
# tools that run in it, and a small C compiler for its preload library on machines whose CPU has AMX. Idempotent.
set -eu

missing=""
need() { # need <package> <program>
  command -v "$2" >/dev/null 2>&1 || [ -x "/usr/sbin/$2" ] || [ -x "/sbin/$2" ] || missing="$missing $1"
}
need user-mode-linux linux.uml
need e2fsprogs mkfs.ext4
need xfsprogs mkfs.xfs
need fio fio
need kmod modprobe
need iproute2 ip
need util-linux mount
if grep -qw amx_tile /proc/cpuinfo && ! command -v cc >/dev/null 2>&1; then need tcc tcc; fi

if [ -z "$missing" ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "guest kernel and tools: install these packages as root and run this again:$missing" >&2
  exit 1
fi
echo "==> guest kernel and tools: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # the list is split on purpose
options="-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300"
# shellcheck disable=SC2086
apt-get install $options $missing || { apt-get update -qq && apt-get install $options $missing; }
