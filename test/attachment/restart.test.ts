/** Recovery after a restart: every state of both tables acted out against stand-ins. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { ErrorKind } from "../../src/base/errors.ts";
import { backendOf } from "../../src/attachment/kernel-devices.ts";
import { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { reopenTable, restartTable } from "../../src/attachment/restart.ts";
import type { ReopenAction } from "../../src/attachment/restart.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { attachOptions, nodeId, World } from "./fakes.ts";

const volumeId = mustVolumeId("vol-1");

async function damageRecord(world: World): Promise<void> {
  const file = await world.disk.open("vol-1.json", { create: true });
  await file.write(Buffer.from('{"version":1,'), 0);
  await file.close();
}

async function recover(world: World): Promise<AttachmentRegistry> {
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  await world.settle();
  return registry;
}

const effects = {
  resume: { trace: ["reconnect", "open resume", "serve"], devices: 1, records: 1, count: 1 },
  finish: { trace: ["open resume", "close"], devices: 0, records: 0, count: 0 },
  disconnect: { trace: ["disconnect"], devices: 0, records: 0, count: 0 },
  discard: { trace: [], devices: 0, records: 0, count: 0 },
} as const;

for (const { record, device: condition } of restartTable.combinations()) {
  if (record === "absent" && condition === "absent") continue;
  const { action } = restartTable.decide({ record, device: condition });
  test(`record ${record} and device ${condition}: ${action}`, async () => {
    const world = new World();
    const device = condition !== "absent";
    const left = { record: record === "valid", device, ...(condition === "in-use" ? { usage: "mounted" } : {}) };
    await world.leaveBehind(attachOptions(), left);
    if (record === "damaged") await damageRecord(world);
    const registry = await recover(world);
    const recordCount = (await world.records.list()).length;
    const found = { trace: world.trace, devices: world.devices.length, records: recordCount, count: registry.count };
    const untouched = { trace: [], devices: 1, records: record === "damaged" ? 1 : 0, count: 0 };
    assert.deepEqual(found, action === "report" ? untouched : effects[action]);
    const waits: readonly boolean[] = action === "resume" ? [true] : action === "finish" ? [false] : [];
    assert.deepEqual(world.clientWaits, waits, "whoever waits must miss nothing");
  });
}

test("a volume is asked for anew as one that a client waits for, and after the detach as one that nobody knows", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  world.failNext("open resume", "unavailable", "corrupt");
  const registry = await recover(world);
  assert.equal((await registry.getAttachment(volumeId))?.state, "failed");
  await registry.detach(volumeId);
  await registry.attach(attachOptions());
  assert.deepEqual(world.clientWaits, [true, true, false]);
});

const reopenEffects: Record<ReopenAction, { trace: string[]; state: string | undefined }> = {
  serve: { trace: ["open resume", "serve"], state: "attached" },
  break: { trace: ["open resume", "open broken", "serve"], state: "failed" },
  retry: { trace: [], state: undefined },
  close: { trace: ["open resume", "close"], state: undefined },
  forget: { trace: ["open resume"], state: undefined },
  keep: { trace: ["open resume"], state: "failed" },
};

for (const found of reopenTable.combinations()) {
  const { outcome } = found;
  const device = found.device === "yes";
  const { action } = reopenTable.decide(found);
  test(`reopening answers ${outcome} ${device ? "with a" : "without a"} device: ${action}`, async () => {
    const world = new World();
    await world.leaveBehind(attachOptions(), { record: true, device });
    if (outcome !== "ok") world.failNext("open resume", outcome);
    const registry = await recover(world);
    const afterRetry = device ? reopenEffects.serve : reopenEffects.close;
    const expected =
      action === "retry"
        ? { trace: ["open resume", ...afterRetry.trace], state: afterRetry.state }
        : reopenEffects[action];
    // The kernel is given its connection first.
    assert.deepEqual(world.trace, device ? ["reconnect", ...expected.trace] : expected.trace);
    assert.equal((await registry.getAttachment(volumeId))?.state, expected.state);
    const kept = expected.state !== undefined;
    assert.equal((await world.records.list()).length, kept ? 1 : 0);
    await registry.detach(volumeId);
    assert.equal(registry.count, 0);
    assert.deepEqual(await world.records.list(), []);
  });
}

test("a store that is away is tried with growing pauses, and the attachment says why it waits", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  world.failNext("open resume", ...Array<ErrorKind>(8).fill("unavailable"));
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  await world.clock.yield();
  await world.clock.yield();
  const waiting = await registry.getAttachment(volumeId);
  assert.equal(waiting?.state, "opening");
  assert.match(waiting?.failure ?? "", /not resumed yet/);
  await world.settle();
  assert.deepEqual(world.clock.sleeps, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
  assert.equal((await registry.getAttachment(volumeId))?.state, "attached");
  assert.equal((await registry.getAttachment(volumeId))?.failure, "");
});

test("an attach during the recovery waits for it and gets the same device", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true, usage: "mounted" });
  const openNow = world.hold("open resume");
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  const attaching = registry.attach(attachOptions());
  await world.settle();
  openNow();
  assert.equal((await attaching).devicePath, "/dev/nbd0");
  assert.deepEqual(world.trace, ["reconnect", "open resume", "serve"]);
});

test("the volume is served at the connection that the kernel has, and at a new one where it took none", async () => {
  const taken = new World();
  await taken.leaveBehind(attachOptions(), { record: true, device: true });
  taken.failNext("open resume", "unavailable");
  await recover(taken);
  assert.deepEqual(taken.trace, ["reconnect", "open resume", "open resume", "serve"]);
  assert.deepEqual([taken.kernelFds.size, taken.serverFds.size, taken.closedFds.size], [1, 1, 0]);

  const refused = new World();
  await refused.leaveBehind(attachOptions(), { record: true, device: true });
  refused.failNext("reconnect", "busy");
  await recover(refused);
  assert.deepEqual(refused.trace, ["reconnect", "open resume", "serve", "reconnect"]);
  assert.equal(
    refused.volumes[0].connections.some(({ drained }) => drained),
    false,
  );
  assert.equal(
    [...refused.serverFds].some((fd) => refused.closedFds.has(fd)),
    false,
  );
  assert.equal(refused.closedFds.size, 1);
});

test("a connection that ended before its volume was open is renewed", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  const serveNow = world.hold("serve");
  await recover(world);
  serveNow();
  await world.settle();
  world.volumes[0].connections[0].end("the kernel closed it");
  await world.settle();
  assert.deepEqual(world.trace, ["reconnect", "open resume", "serve", "serve", "reconnect"]);
});

test("a detach during the recovery waits until the volume could be uploaded", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  const openNow = world.hold("open resume");
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  const detaching = registry.detach(volumeId);
  await world.settle();
  assert.deepEqual(world.trace, ["reconnect", "open resume"]);
  openNow();
  await detaching;
  assert.equal(world.trace.at(-1), "close");
  assert.equal(world.devices.length, 0);
});

test("a hand-over ends the retries of a recovery and keeps what is there", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  world.failNext("open resume", ...Array<ErrorKind>(1000).fill("unavailable"));
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  await world.clock.yield();
  await registry.handOver();
  await world.settle();
  const attempts = world.trace.length;
  await world.settle();
  assert.equal(world.trace.length, attempts);
  assert.equal(world.devices.length, 1);
  assert.equal((await world.records.list()).length, 1);
});

test("devices of another node on the same kernel are left alone", async () => {
  const world = new World();
  world.addDevice(backendOf("node-ab", "vol-1"));
  world.addDevice("something else");
  await recover(world);
  assert.deepEqual(world.trace, []);
  assert.equal(backendOf(nodeId, "vol-1"), "s3block:node-a:vol-1");
});

test("a half-written record is cleaned up and does not hide the whole one", async () => {
  const world = new World();
  await world.leaveBehind(attachOptions(), { record: true, device: true });
  await (await world.disk.open("vol-1.json.tmp", { create: true })).close();
  const registry = await recover(world);
  assert.equal((await registry.getAttachment(volumeId))?.state, "attached");
  assert.deepEqual(await world.disk.list(), ["vol-1.json"]);
});

for (const [name, content] of [
  ["an empty record", ""],
  ["a record of another volume", '{"version":1,"options":{"volumeId":"vol-2"}}'],
  ["a record of another version", '{"version":2}'],
  ["a record that is no object", "[1,2]"],
  ["a record of 100 KiB", " ".repeat(100 * 1024)],
]) {
  test(`${name} is reported as damaged`, async () => {
    const world = new World();
    const file = await world.disk.open("vol-1.json", { create: true });
    await file.write(Buffer.from(content), 0);
    await file.close();
    assert.deepEqual(await world.records.list(), [{ volumeId, record: undefined }]);
  });
}
