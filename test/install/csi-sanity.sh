#!/usr/bin/env bash
# Installs csi-sanity, the conformance suite of the CSI community that test/csi/sanity.test.ts runs, as
# .cache/bin/csi-sanity.
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/go-tool.sh" csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0
