/** Every row of the tables of an attachment, visited by the real registry over stand-ins, with what must come of it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { ErrorKind } from "../../src/base/errors.ts";
import { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { backendOf } from "../../src/attachment/kernel-devices.ts";
import * as tables from "../../src/attachment/restart.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { attachOptions, nodeId, World } from "../attachment/fakes.ts";
import { unvisited, watchTables } from "./visits.ts";

const volumeId = mustVolumeId("vol-1");
const visited = watchTables();

async function started(world: World): Promise<AttachmentRegistry> {
  const registry = new AttachmentRegistry(world.parts());
  await registry.recover();
  await world.settle();
  return registry;
}

async function damageRecord(world: World): Promise<void> {
  const file = await world.disk.open(`${volumeId}.json`, { create: true });
  await file.write(Buffer.from('{"version":0}'), 0);
  await file.close();
}

test("what a start finds is resumed, finished, freed, reported or removed", async () => {
  for (const found of tables.restartTable.combinations()) {
    if (found.record === "absent" && found.device === "absent") continue;
    const world = new World();
    const device = found.device !== "absent";
    const usage = found.device === "in-use" ? { usage: "mounted" } : {};
    await world.leaveBehind(attachOptions(), { record: found.record === "valid", device, ...usage });
    if (found.record === "damaged") await damageRecord(world);
    const registry = await started(world);
    const isServed = found.record === "valid" && device;
    assert.equal((await registry.getAttachment(volumeId))?.state, isServed ? "attached" : undefined);
    const isKept = isServed || (found.record === "damaged" && found.device === "in-use");
    assert.equal((await world.records.list()).length, isKept ? 1 : 0, JSON.stringify(found));
    assert.equal(world.devices.length, isServed || found.device === "in-use" ? 1 : 0, JSON.stringify(found));
  }
});

test("a volume that cannot be reopened is served with errors, tried again, forgotten or kept", async () => {
  const states: Record<string, string | undefined> = {};
  for (const outcome of ["fenced", "in-use", "not-found", "conflict", "corrupt", "unavailable"] as ErrorKind[]) {
    for (const device of [true, false]) {
      const world = new World();
      await world.leaveBehind(attachOptions(), { record: true, device });
      world.failNext("open resume", outcome);
      const registry = await started(world);
      const isFinal = outcome !== "unavailable" && outcome !== "not-found";
      const opened = world.trace.filter((step) => step.startsWith("open"));
      assert.deepEqual(opened.slice(1), !isFinal ? ["open resume"] : device ? ["open broken"] : [], outcome);
      states[`${outcome} ${device ? "device" : ""}`] = (await registry.getAttachment(volumeId))?.state;
    }
  }
  assert.deepEqual(states, {
    "fenced device": "failed",
    "fenced ": undefined,
    "in-use device": "failed",
    "in-use ": undefined,
    "not-found device": "attached",
    "not-found ": undefined,
    "conflict device": "failed",
    "conflict ": "failed",
    "corrupt device": "failed",
    "corrupt ": "failed",
    "unavailable device": "attached",
    "unavailable ": undefined,
  });
});

test("an attach of what is attached answers, waits for it, detaches it first or is refused", async () => {
  const world = new World();
  const registry = await started(world);
  const connectNow = world.hold("connect");
  const first = registry.attach(attachOptions());
  await world.settle();
  const second = registry.attach(attachOptions());
  await assert.rejects(registry.attach(attachOptions({ readOnly: true })), { kind: "conflict" });
  connectNow();
  assert.deepEqual(await second, await first);
  assert.deepEqual(world.trace, ["open take", "serve", "connect"]);
  assert.equal((await registry.attach(attachOptions())).state, "attached");
  await assert.rejects(registry.attach(attachOptions({ durability: "local" })), { kind: "conflict" });
  world.trace.length = 0;
  assert.equal((await registry.attach(attachOptions({ publication: 2 }))).state, "attached");
  assert.deepEqual(world.trace, ["disconnect", "close", "open take", "serve", "connect"]);
  world.volumes.at(-1)?.fail("fenced");
  world.trace.length = 0;
  assert.equal((await registry.attach(attachOptions({ publication: 2 }))).state, "attached");
  assert.deepEqual(world.trace, ["disconnect", "close", "open take", "serve", "connect"]);
  const closeNow = world.hold("close");
  const detached = registry.detach(volumeId);
  await world.settle();
  const again = registry.attach(attachOptions({ readOnly: true }));
  await world.settle();
  closeNow();
  await detached;
  assert.equal((await again).readOnly, true);
});

test("an attach that meets the end of the server is told to come again, and what was attached is left", async () => {
  const world = new World();
  const registry = await started(world);
  await registry.attach(attachOptions());
  const leaveNow = world.hold("leave");
  const reconnectNow = world.hold("serve");
  world.volumes[0].connections[0].end("reset by the kernel");
  await world.settle();
  const attaching = registry.attach(attachOptions());
  const left = registry.handOver();
  await world.settle();
  reconnectNow();
  leaveNow();
  await left;
  await assert.rejects(attaching, { kind: "unavailable" });
  assert.equal(world.devices.length, 1);
});

test("only a device of this very volume is freed, and never one that is in use", async () => {
  const world = new World();
  world.addDevice(backendOf(nodeId, `${volumeId}0`));
  const stray = world.addDevice(backendOf(nodeId, volumeId));
  const registry = new AttachmentRegistry(world.parts());
  world.uses.set(stray.index, "mounted at /mnt");
  await assert.rejects(registry.attach(attachOptions()), { kind: "in-use" });
  assert.deepEqual(world.trace, []);
  world.uses.clear();
  await registry.attach(attachOptions());
  assert.deepEqual(world.trace, ["disconnect", "open take", "serve", "connect"]);
  assert.deepEqual(
    world.devices.map(({ backend }) => backend),
    [backendOf(nodeId, `${volumeId}0`), backendOf(nodeId, volumeId)],
  );
});

test("every row of every table of an attachment was visited by the tests above", () => {
  const { restartTable, reopenTable, reuseTable, deviceTable } = tables;
  for (const table of [restartTable, reopenTable, reuseTable, deviceTable]) {
    assert.deepEqual(unvisited(table, visited), [], table.title);
  }
});
