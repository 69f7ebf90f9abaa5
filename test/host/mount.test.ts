/** mountinfo as the kernel writes it, read exactly. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKind } from "../../src/base/errors.ts";
import { listMounts, mountAt, parseMountInfo } from "../../src/host/mount.ts";

const sample = [
  "22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw",
  "27 1 254:0 / / rw,relatime shared:1 master:2 propagate_from:3 - ext4 /dev/vda rw,errors=remount-ro",
  "95 27 43:0 / /var/lib/kubelet/plugins/x/globalmount rw,relatime - xfs /dev/nbd0 rw,nouuid,inode64",
  "96 27 43:0 /sub /var/lib/kubelet/pods/a\\040b/mount ro,relatime - xfs /dev/nbd0 rw,nouuid",
  "97 27 0:5 /nbd1 /pods/tab\\011new\\012back\\134slash rw - devtmpfs udev rw,size=1k",
  "98 27 0:50 / /pods/\\303\\274mlaut rw - tmpfs  rw",
  "99 27 0:50 / /bare rw - tmpfs none",
].join("\n");

test("fields before and after the separator are told apart, however many optional ones there are", () => {
  const mounts = parseMountInfo(`${sample}\n`);
  assert.equal(mounts.length, 7);
  assert.deepEqual(mounts[1], {
    id: 27,
    parentId: 1,
    major: 254,
    minor: 0,
    root: "/",
    mountPoint: "/",
    options: ["rw", "relatime"],
    fileSystem: "ext4",
    source: "/dev/vda",
    superOptions: ["rw", "errors=remount-ro"],
  });
  assert.deepEqual(mounts[6].superOptions, [""]);
});

test("escaped spaces, tabs, newlines, backslashes and UTF-8 are read back", () => {
  const mounts = parseMountInfo(sample);
  assert.equal(mounts[3].mountPoint, "/var/lib/kubelet/pods/a b/mount");
  assert.equal(mounts[4].mountPoint, "/pods/tab\tnew\nback\\slash");
  assert.equal(mounts[5].mountPoint, "/pods/\u00fcmlaut");
  assert.equal(mounts[5].source, "");
});

test("of mounts stacked on one path the topmost counts, and a prefix of a path is another path", () => {
  const stacked = `${sample}\n100 95 43:2 / /var/lib/kubelet/plugins/x/globalmount rw - ext4 /dev/nbd2 rw`;
  const mounts = parseMountInfo(stacked);
  assert.equal(mountAt(mounts, "/var/lib/kubelet/plugins/x/globalmount")?.source, "/dev/nbd2");
  assert.equal(mountAt(mounts, "/var/lib/kubelet/plugins/x"), undefined);
});

test("arbitrary text is read or refused, and never anything else", () => {
  const line = fc.array(fc.constantFrom("1", "27", "8:1", "/", "/a\\040b", "-", "rw", "ext4", "\\", "\\999", ""));
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        line.map((fields) => fields.join(" ")),
      ),
      (text) => {
        try {
          parseMountInfo(text);
        } catch (error) {
          assert.ok(isKind(error, "corrupt"));
        }
      },
    ),
  );
});

test("this machine's own mounts are read", async () => {
  assert.ok(mountAt(await listMounts(), "/") !== undefined);
});
