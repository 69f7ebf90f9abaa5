/**
 * Every row of the tables of mounts, visited by the real node service on real devices, with what must come of it. What a
 * volume holds (formatTable) is visited in test/csi/format-decision.test.ts.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { publishTable, stagingTable } from "../../src/csi/mount-tables.ts";
import { NodeService } from "../../src/csi/node.ts";
import { statusOfError } from "../../src/csi/status.ts";
import { listMounts, unmount } from "../../src/host/mount.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { LoopDataPlane } from "../csi/loop-data-plane.ts";
import { loopTests } from "../csi/loop-tests.ts";
import { unvisited, watchTables } from "./visits.ts";

const visited = watchTables();
const volumeId = mustVolumeId("vol-1");
const volumeBytes = 16 * 1024 ** 2;
const context = { publication: "1", readOnly: "false", durability: "s3" };
const asDevice = { accessType: "block", block: {}, accessMode: { mode: "SINGLE_NODE_WRITER" } };
const asFiles = {
  accessType: "mount",
  mount: { fsType: "ext4", mountFlags: [], volumeMountGroup: "" },
  accessMode: { mode: "SINGLE_NODE_WRITER" },
};
const asOtherFiles = { ...asFiles, mount: { ...asFiles.mount, fsType: "xfs" } };

let directory = "";
let staging = "";
let target = "";
let dataPlane: LoopDataPlane;

async function setUp(): Promise<void> {
  directory = await mkdtemp(join(tmpdir(), "s3block-mounts-"));
  staging = join(directory, "staging");
  target = join(directory, "target");
  await mkdir(join(directory, "images"));
  dataPlane = new LoopDataPlane(join(directory, "images"), volumeBytes);
}

async function tearDown(): Promise<void> {
  const mounts = (await listMounts()).filter((mount) => mount.mountPoint.startsWith(`${directory}/`));
  for (const mount of mounts.toReversed()) await unmount(mount.mountPoint);
  await dataPlane.close();
  await rm(directory, { recursive: true });
}

/** What the call answers; a fresh service for each, as after a restart. */
async function call(method: "stage" | "unstage" | "publish" | "unpublish", fields: object = {}): Promise<code> {
  const options = { nodeId: "n", maxVolumesPerNode: 8, clock: systemClock, log: nullLog };
  const service = new NodeService({ ...options, kubeletDir: directory, dataPlane });
  const paths = { stagingTargetPath: staging, targetPath: target };
  const request = { volumeId, publishContext: context, volumeCapability: asFiles, secrets: {}, volumeContext: {} };
  try {
    await service[method]({ ...request, ...paths, readonly: false, ...fields } as never);
    return code.OK;
  } catch (error) {
    return statusOfError(error).code;
  }
}

function definitions(): void {
  beforeEach(setUp);
  afterEach(tearDown);

  test("staging mounts what is not mounted, finds it mounted, and refuses what is mounted otherwise", async () => {
    assert.equal(await call("stage"), code.OK);
    // A file in use would keep the mount from being replaced: it is left as it is.
    const file = await open(join(staging, "file"), "w");
    assert.equal(await call("stage"), code.OK);
    await file.close();
    assert.equal(await call("stage", { volumeCapability: asOtherFiles }), code.ALREADY_EXISTS);
    assert.equal(await call("stage", { volumeId: mustVolumeId("vol-2") }), code.ALREADY_EXISTS);
    execFileSync("mount", ["-o", "remount,ro", staging]);
    assert.equal(await call("stage"), code.ALREADY_EXISTS);
    execFileSync("mount", ["-o", "remount,bind,rw", staging]);
    assert.equal(await call("stage"), code.FAILED_PRECONDITION);
    assert.equal(await call("unstage"), code.OK);
    assert.equal(await call("stage"), code.OK);
  });

  test("staging goes on where an earlier one died: attached and not mounted, or the attachment lost", async () => {
    await dataPlane.attach({
      volumeId,
      location: { url: "", endpoint: "", region: "" },
      secrets: {},
      readOnly: false,
      durability: "s3",
      publication: 1,
    });
    assert.equal(await call("stage"), code.OK);
    dataPlane.lose(volumeId);
    assert.equal(await call("stage"), code.OK);
    const { devicePath } = (await dataPlane.getAttachment(volumeId))!;
    const sources = (await listMounts()).filter(({ mountPoint }) => mountPoint === staging).map(({ source }) => source);
    assert.deepEqual(sources, [devicePath]);
  });

  test("a device in use as one is not staged, and a filesystem in use is not published as a device", async () => {
    assert.equal(await call("stage", { volumeCapability: asDevice }), code.OK);
    assert.equal(await call("publish", { volumeCapability: asDevice }), code.OK);
    assert.equal(await call("publish", { volumeCapability: asDevice }), code.OK);
    assert.equal(await call("stage"), code.ALREADY_EXISTS);
    assert.equal(await call("unpublish"), code.OK);
    assert.equal(await call("stage"), code.OK);
    assert.equal(await call("publish", { volumeCapability: asDevice }), code.ALREADY_EXISTS);
  });

  test("publishing binds what is staged, finds it bound, and refuses what is bound otherwise", async () => {
    await call("stage");
    const elsewhere = { stagingTargetPath: join(directory, "elsewhere") };
    assert.equal(await call("publish", elsewhere), code.FAILED_PRECONDITION);
    assert.equal(await call("publish"), code.OK);
    assert.equal(await call("publish"), code.OK);
    assert.equal(await call("publish", { readonly: true }), code.ALREADY_EXISTS);
    const other = join(directory, "other");
    assert.equal(await call("publish", { targetPath: other }), code.FAILED_PRECONDITION);
    await call("unpublish");
    await mkdir(other);
    execFileSync("mount", ["-t", "tmpfs", "none", other]);
    assert.equal(await call("publish", { targetPath: other }), code.ALREADY_EXISTS);
  });

  test("every row of every table of mounts was visited by the tests above", () => {
    for (const table of [stagingTable, publishTable]) assert.deepEqual(unvisited(table, visited), [], table.title);
  });
}

await loopTests({ url: import.meta.url, name: "every state of mounts on real devices" }, definitions);
