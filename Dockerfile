# The image of all three processes: controller (not root, no tools needed), node and server (root, privileged).
#   docker build -t s3block-csi:0.1.0 .
# Node runs the TypeScript sources as they are: nothing is compiled.

FROM node:24.21.0-trixie-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# No production dependency needs an install script: the binding to system calls comes prebuilt.
RUN npm ci --omit=dev --ignore-scripts \
 && find node_modules -type f \( -name '*.map' -o -name '*.md' -o -name '*.d.ts' -o -name '*.d.mts' \) -delete

FROM debian:trixie-slim
# mkfs and fsck of ext4 and xfs; blkid, mount, umount, blockdev, blkdiscard; modprobe; authorities for TLS; the C++
# runtime that node is linked with.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates e2fsprogs kmod libatomic1 libstdc++6 mount util-linux xfsprogs \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=dependencies /usr/local/bin/node /usr/local/bin/node
COPY --from=dependencies /app/node_modules /app/node_modules
COPY package.json LICENSE /app/
COPY proto /app/proto
COPY src /app/src
RUN printf '#!/bin/sh\nexec /usr/local/bin/node /app/src/cli/main.ts "$@"\n' > /usr/local/bin/s3block \
 && chmod 0755 /usr/local/bin/s3block \
 && s3block version
ENV NODE_ENV=production
# The controller's user. The node and data-plane pods ask for root by name.
USER 65532:65532
ENTRYPOINT ["s3block"]
