/** Which filesystems and mount options are let through, and the marker of an unfinished mkfs. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKind } from "../../src/base/errors.ts";
import { splitDeviceNumber } from "../../src/host/block-device.ts";
import {
  checkMountOptions,
  fileSystemMountOptions,
  type FileSystemType,
  mustFileSystemType,
} from "../../src/host/filesystem.ts";
import { encodeFormatMarker, isFormatMarker } from "../../src/host/format-marker.ts";

test("ext4 and xfs are served, nothing is ext4, and others are refused by name", () => {
  assert.equal(mustFileSystemType(""), "ext4");
  assert.equal(mustFileSystemType("xfs"), "xfs");
  for (const type of ["btrfs", "ext4,xfs", "-t", "EXT4", "ext4\n"]) {
    assert.throws(
      () => mustFileSystemType(type),
      (error) => isKind(error, "invalid") && error.message.includes(JSON.stringify(type)),
    );
  }
});

test("ordinary mount options are let through", () => {
  checkMountOptions("ext4", ["noatime", "discard", "commit=30", "errors=remount-ro", "data=ordered", "nodev"]);
  checkMountOptions("xfs", ["noatime", "inode64", "allocsize=64k", "logbsize=256k", "pquota"]);
  checkMountOptions("ext4", ['context="system_u:object_r:container_file_t:s0:c1,c2"']);
});

test("options that name devices, weaken durability, panic the node or hide another option are refused", () => {
  const refused: [FileSystemType, string][] = [
    ["ext4", "nobarrier"],
    ["ext4", "barrier=0"],
    ["ext4", "errors=panic"],
    ["ext4", "journal_path=/dev/sda"],
    ["ext4", "loop"],
    ["ext4", "bind"],
    ["ext4", "remount"],
    ["ext4", "noatime,nobarrier"],
    ["ext4", "-o"],
    ["ext4", "X-mount.mkdir"],
    ["ext4", "helper=x"],
    ["ext4", "noatime\n"],
    ["ext4", "inode64"],
    ["ext4", 'context="a"b"'],
    ["ext4", "context=a,nobarrier"],
    ["ext4", 'context="a",nobarrier'],
    ["xfs", 'context="a,norecovery'],
    ["xfs", "logdev=/dev/sda"],
    ["xfs", "rtdev=/dev/sda"],
    ["xfs", "norecovery"],
    ["xfs", "data=ordered"],
    ["xfs", ""],
  ];
  for (const [type, option] of refused) {
    assert.throws(
      () => checkMountOptions(type, [option]),
      (error) => isKind(error, "invalid"),
      option,
    );
  }
});

test("the value of a refused option is not repeated", () => {
  assert.throws(
    () => checkMountOptions("ext4", ["password=hunter2secret"]),
    (error) => isKind(error, "invalid") && error.message.includes("password") && !error.message.includes("hunter2"),
  );
});

test("xfs is always mounted without comparing UUIDs, and read-only comes first", () => {
  assert.deepEqual(fileSystemMountOptions("xfs", ["noatime"], true), ["ro", "nouuid", "noatime"]);
  assert.deepEqual(fileSystemMountOptions("ext4", [], false), []);
});

test("the marker of an unfinished mkfs is of one volume and of no damaged block", () => {
  const marker = encodeFormatMarker("vol-1");
  assert.equal(marker.length, 4096);
  assert.equal(
    marker.subarray(0, 20).toString("hex"),
    `${Buffer.from("S3BFMT01").toString("hex")}05000000766f6c2d3100000000`.slice(0, 40),
  );
  assert.equal(isFormatMarker(marker, "vol-1"), true);
  assert.equal(isFormatMarker(marker, "vol-2"), false);
  assert.equal(isFormatMarker(Buffer.alloc(4096), "vol-1"), false);
  fc.assert(
    fc.property(fc.nat(4095), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const damaged = Buffer.from(marker);
      damaged[at] ^= change;
      assert.equal(isFormatMarker(damaged, "vol-1"), false);
    }),
  );
});

test("device numbers are split as the kernel packs them", () => {
  assert.deepEqual(splitDeviceNumber(0x2b00n), { major: 43, minor: 0 });
  assert.deepEqual(splitDeviceNumber(0x2b05n), { major: 43, minor: 5 });
  // major 259, minor 0x12345: minor bits above the low eight stand above bit 20.
  assert.deepEqual(splitDeviceNumber(0x12310345n), { major: 259, minor: 0x12345 });
});
