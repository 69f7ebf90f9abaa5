#!/usr/bin/env bash
# Installs helm, which lints and renders the chart in test/charts, as .cache/bin/helm.
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/go-tool.sh" helm helm.sh/helm/v3/cmd/helm@v3.18.6
