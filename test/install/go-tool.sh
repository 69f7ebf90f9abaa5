#!/usr/bin/env bash
# Builds a program of the Go module proxy into .cache/bin and says so; what is there in that version is left alone.
#   go-tool.sh <program> <package>@<version>        for example: go-tool.sh helm helm.sh/helm/v3/cmd/helm@v3.18.6
# Needs Go 1.25 or newer. Where the machine has an older one or none, Debian's golang-go (any version) fetches the
# toolchain, which is itself a module of the proxy, checked like every module by its checksum. No C compiler is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

toolchain=go1.25.5
cache=$PWD/.cache
program=$1 package=$2

is_recent() { # is_recent <go>
  local version
  version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
  [[ "$(printf '%s\n' go1.25 "${version%% *}" | sort -V | head -n 1)" == go1.25 ]]
}

find_go() {
  local candidate
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go-toolchain/bin/go"; do
    if [[ -x "$candidate" ]] && is_recent "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

fetch_go() {
  local architecture module
  if ! command -v go >/dev/null; then
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
      echo "The tests need Go 1.25 or newer to build $program." >&2
      echo "Install it (on Debian, as root: apt-get install -y golang-go) and run this again." >&2
      exit 1
    fi
    echo "==> Debian packages: installing golang-go" >&2
    local options=(-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300)
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" golang-go >&2 || {
      apt-get update -qq >&2
      DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" golang-go >&2
    }
    hash -r
  fi
  if is_recent "$(command -v go)"; then return; fi
  case "$(uname -m)" in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *)
      echo "Install Go 1.25 or newer and run this again: $(uname -m) has no toolchain here." >&2
      exit 1
      ;;
  esac
  module=golang.org/toolchain@v0.0.1-$toolchain.linux-$architecture
  echo "==> Go: fetching the toolchain $toolchain as a module" >&2
  (cd /; go mod download "$module" >&2)
  rm -rf "$cache/go-toolchain"
  mv "$GOPATH/pkg/mod/$module" "$cache/go-toolchain"
  # A module archive has no execute bits.
  find "$cache/go-toolchain/bin" "$cache/go-toolchain/pkg/tool" -type f -exec chmod +x {} +
}

if [[ -x "$cache/bin/$program" && "$(cat "$cache/bin/$program.version" 2>/dev/null)" == "$package" ]]; then exit 0; fi

mkdir -p "$cache/bin"
export GOPATH=$cache/go GOCACHE=$cache/go-build GOFLAGS=-modcacherw CGO_ENABLED=0 GOBIN=$cache/bin
unset GOROOT
go=$(find_go)
if [[ -z "$go" ]]; then
  fetch_go
  go=$(find_go)
fi
echo "==> $program: building ${package##*@} from the Go module proxy (some minutes, once)"
rm -f "$cache/bin/$program.version"
(cd /; GOTOOLCHAIN=local "$go" install -trimpath -ldflags="-s -w" "$package")
printf '%s\n' "$package" >"$cache/bin/$program.version"
