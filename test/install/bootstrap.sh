#!/usr/bin/env bash
# Installs what an npm command of this project needs and says so, line by line; what is there already is left alone.
#   bootstrap.sh check   the npm dependencies of package-lock.json, Node 24 among them
#   bootstrap.sh start   and the guest kernel for machines whose own kernel has no nbd
#   bootstrap.sh test    and the NBD clients, the S3 server, csi-sanity and helm of the tests
# It runs with whatever bash and Node the machine has, takes a lock, and never changes a tracked file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '==> %s\n' "$*"; }

install_npm() {
  if is_npm_installed && is_node_24; then return; fi
  say "npm dependencies: installing what package-lock.json names (npm ci)"
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  # The one package whose install script brings something; package.json names it (allowScripts), and no other runs.
  npm rebuild node --ignore-scripts=false --loglevel=error
  is_node_24 && return
  echo "The install script of the npm package \"node\" did not bring Node 24: is its registry within reach?" >&2
  exit 1
}

# True where node_modules holds every package that package-lock.json names, in its version. Any Node can tell.
is_npm_installed() {
  node -e '
    const { existsSync, readFileSync } = require("node:fs");
    const packages = (path) => JSON.parse(readFileSync(path, "utf8")).packages;
    const state = "node_modules/.package-lock.json";
    const installed = existsSync(state) ? packages(state) : {};
    const isThere = ([path, wanted]) =>
      path === "" || (installed[path] ? installed[path].version === wanted.version : wanted.optional === true);
    process.exitCode = Object.entries(packages("package-lock.json")).every(isThere) ? 0 : 1;
  '
}

is_node_24() { [[ "$(node_modules/.bin/node --version 2>/dev/null)" == v24.* ]]; }

mode=${1:-}
case "$mode" in
  check | start | test) ;;
  *)
    echo "usage: bash test/install/bootstrap.sh check|start|test" >&2
    exit 2
    ;;
esac

mkdir -p .cache
exec 9>.cache/bootstrap.lock
if command -v flock >/dev/null && ! flock -n 9; then
  say "waiting for another installation in this directory"
  flock 9
fi

install_npm
[[ "$mode" == check ]] && exit 0
# /usr/sbin holds mkfs and modprobe, and Debian's shells of ordinary users do not have it.
export PATH="$PWD/node_modules/.bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"
sh test/install/uml.sh
if [[ "$mode" == start ]]; then
  say "everything that this needs is installed (${SECONDS} s)"
  exit 0
fi
bash test/install/apt.sh
for tool in s3-server csi-sanity helm; do bash "test/install/$tool.sh"; done
# Modules and objects that the builds leave, some gigabytes, serve nobody once the programs are there.
rm -rf .cache/go .cache/go-build
