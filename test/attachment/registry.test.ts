/** The attachments of a server against stand-ins: order of steps, idempotency, failures, races. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import type { ErrorKind } from "../../src/base/errors.ts";
import { AttachmentRegistry } from "../../src/attachment/registry.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { attachOptions, volumeSizeBytes, World } from "./fakes.ts";

const volumeId = mustVolumeId("vol-1");

function setUp(): { world: World; registry: AttachmentRegistry } {
  const world = new World();
  return { world, registry: new AttachmentRegistry(world.parts()) };
}

function kind(expected: ErrorKind): (error: unknown) => boolean {
  return (error) => isKind(error, expected);
}

test("an attach opens, serves, connects, and tells the device", async () => {
  const { world, registry } = setUp();
  const attachment = await registry.attach(attachOptions());
  assert.deepEqual(world.trace, ["open take", "serve", "connect"]);
  assert.deepEqual(attachment, {
    volumeId,
    state: "attached",
    devicePath: "/dev/nbd0",
    sizeBytes: volumeSizeBytes,
    blockSizeBytes: 4096,
    readOnly: false,
    neverWritten: true,
    epoch: 3,
    dirtyBytes: 8192,
    behindSeconds: 1.5,
    failure: "",
  });
});

test("the record stands before the device is connected and goes after the volume was closed", async () => {
  const { world, registry } = setUp();
  const connectNow = world.hold("connect");
  const attaching = registry.attach(attachOptions({ secrets: { accessKeyId: "key" } }));
  await world.settle();
  assert.equal((await world.records.list())[0]?.record?.options.secrets.accessKeyId, "key");
  connectNow();
  await attaching;
  const closeNow = world.hold("close");
  const detaching = registry.detach(volumeId);
  await world.settle();
  assert.equal(world.devices.length, 0);
  assert.equal((await world.records.list()).length, 1);
  closeNow();
  await detaching;
  assert.deepEqual(await world.records.list(), []);
  assert.equal(registry.count, 0);
});

test("twenty concurrent attaches open one volume and get one device", async () => {
  const { world, registry } = setUp();
  const attachments = await Promise.all(Array.from({ length: 20 }, () => registry.attach(attachOptions())));
  assert.deepEqual(new Set(attachments.map((attachment) => attachment.devicePath)), new Set(["/dev/nbd0"]));
  assert.deepEqual(world.trace, ["open take", "serve", "connect"]);
});

test("an attach with other access is a conflict", async () => {
  const { registry } = setUp();
  await registry.attach(attachOptions());
  await assert.rejects(registry.attach(attachOptions({ readOnly: true })), kind("conflict"));
  await assert.rejects(registry.attach(attachOptions({ durability: "local" })), kind("conflict"));
  const location = { url: "s3://other", endpoint: "", region: "" };
  await assert.rejects(registry.attach(attachOptions({ location })), kind("conflict"));
  assert.equal((await registry.attach(attachOptions())).state, "attached");
});

for (const step of ["open take", "serve", "connect"]) {
  test(`an attach that fails at "${step}" leaves nothing behind and can be tried again`, async () => {
    const { world, registry } = setUp();
    world.failNext(step, "exhausted");
    await assert.rejects(registry.attach(attachOptions()), kind("exhausted"));
    assert.equal(registry.count, 0);
    assert.deepEqual(await world.records.list(), []);
    assert.equal(world.trace.includes("close"), step !== "open take");
    if (step === "serve") assert.deepEqual([...world.closedFds], [102]);
    assert.equal((await registry.attach(attachOptions())).state, "attached");
  });
}

test("an attach that could not be undone is undone by the next call", async () => {
  const { world, registry } = setUp();
  world.failNext("connect", "exhausted");
  world.failNext("close", "unavailable");
  await assert.rejects(registry.attach(attachOptions()), kind("exhausted"));
  assert.equal((await registry.getAttachment(volumeId))?.state, "detaching");
  world.trace.length = 0;
  assert.equal((await registry.attach(attachOptions())).state, "attached");
  assert.deepEqual(world.trace, ["close", "open take", "serve", "connect"]);
});

test("a detach of what is not attached is no error", async () => {
  const { registry } = setUp();
  await registry.detach(volumeId);
  assert.equal(await registry.getAttachment(volumeId), undefined);
  assert.deepEqual(await registry.listAttachments(), []);
});

test("a device in use is not detached, and goes on to be served", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.uses.set(0, "mounted at /mnt");
  await assert.rejects(registry.detach(volumeId), /mounted at \/mnt.*unmount it first/);
  assert.equal((await registry.getAttachment(volumeId))?.state, "attached");
  assert.equal(world.trace.includes("disconnect"), false);
  world.uses.clear();
  await registry.detach(volumeId);
  assert.equal(registry.count, 0);
});

test("a detach that fails half way goes on where it stood", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.failNext("close", "unavailable");
  await assert.rejects(registry.detach(volumeId), kind("unavailable"));
  assert.equal((await registry.getAttachment(volumeId))?.state, "detaching");
  assert.equal((await world.records.list()).length, 1);
  await registry.detach(volumeId);
  assert.deepEqual(world.trace.slice(3), ["disconnect", "close", "close"]);
});

test("a volume that was fenced is detached without what it could not upload", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.volumes[0].fail("another node owns it");
  const failed = await registry.getAttachment(volumeId);
  assert.deepEqual([failed?.state, failed?.failure], ["failed", "another node owns it"]);
  await assert.rejects(registry.flush(volumeId), /another node owns it.*detach it first/);
  world.failNext("close", "fenced");
  await registry.detach(volumeId);
  assert.equal(registry.count, 0);
  assert.deepEqual(await world.records.list(), []);
});

test("a volume that is fenced while it is being closed is let go of all the same", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.failNext("close", "fenced");
  await registry.detach(volumeId);
  assert.deepEqual(world.trace.slice(-2), ["close", "close"]);
  assert.equal((await registry.attach(attachOptions())).state, "attached");
});

test("an attach of a failed volume replaces it where nobody uses the device", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.volumes[0].fail("another node owns it");
  world.uses.set(0, "mounted at /mnt");
  await assert.rejects(registry.attach(attachOptions()), kind("in-use"));
  world.uses.clear();
  assert.equal((await registry.attach(attachOptions())).state, "attached");
  assert.equal(world.volumes.length, 2);
});

test("a later publication takes the volume anew, since another node may have owned it between", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions({ publication: 1 }));
  await registry.attach(attachOptions({ publication: 2 }));
  assert.deepEqual(world.trace, [
    "open take",
    "serve",
    "connect",
    "disconnect",
    "close",
    "open take",
    "serve",
    "connect",
  ]);
});

test("a connection that the kernel dropped is renewed, the new one only after the old one has closed", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  const [first] = world.volumes[0].connections;
  first.end("the kernel closed it");
  await world.settle();
  assert.deepEqual(world.trace.slice(3), ["serve", "reconnect"]);
  world.volumes[0].connections[1].end("again");
  await world.settle();
  assert.equal(world.volumes[0].connections.length, 3);
  assert.equal((await registry.getAttachment(volumeId))?.state, "attached");
});

test("a renewal that fails is tried again, and each failed connection is closed before the next", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.failNext("reconnect", "busy", "unavailable");
  world.failNext("serve", "exhausted");
  world.volumes[0].connections[0].end("the kernel closed it");
  await world.settle();
  const { connections } = world.volumes[0];
  assert.deepEqual(
    connections.map((connection) => connection.drained),
    [true, true, true, false],
  );
  assert.deepEqual(world.clock.sleeps, [100, 200, 400]);
  assert.equal((await registry.attach(attachOptions())).state, "attached");
});

test("a device that is gone ends the renewal and is told", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  world.failNext("reconnect", "not-found");
  world.volumes[0].connections[0].end("gone");
  await world.settle();
  assert.match((await registry.getAttachment(volumeId))?.failure ?? "", /kernel device is gone/);
});

test("a flush waits for the store", async () => {
  const { world, registry } = setUp();
  await assert.rejects(registry.flush(volumeId), kind("not-found"));
  await registry.attach(attachOptions());
  await registry.flush(volumeId);
  assert.equal(world.trace.at(-1), "drain");
});

test("a device that lost its record is freed by an attach, unless it is in use", async () => {
  const { world, registry } = setUp();
  await world.leaveBehind(attachOptions(), { device: true, usage: "mounted at /mnt" });
  await assert.rejects(registry.attach(attachOptions()), /still in use.*mounted at \/mnt/);
  assert.equal(world.devices.length, 1);
  world.uses.clear();
  assert.equal((await registry.attach(attachOptions())).state, "attached");
  assert.deepEqual(world.trace, ["disconnect", "open take", "serve", "connect"]);
});

test("a hand-over answers, leaves the volume, keeps device and record, and takes no more calls", async () => {
  const { world, registry } = setUp();
  await registry.attach(attachOptions());
  await registry.handOver();
  assert.deepEqual(world.trace.slice(3), ["leave"]);
  assert.equal(world.volumes[0].connections[0].drained, true);
  await world.settle();
  assert.equal(world.trace.includes("reconnect"), false);
  assert.equal(world.devices.length, 1);
  assert.equal((await world.records.list()).length, 1);
  await assert.rejects(registry.attach(attachOptions()), kind("unavailable"));
  await assert.rejects(registry.detach(volumeId), kind("unavailable"));
});

test("a hand-over in the midst of an attach connects nothing any more", async () => {
  const { world, registry } = setUp();
  const openNow = world.hold("open take");
  const attaching = registry.attach(attachOptions());
  await world.settle();
  await registry.handOver();
  openNow();
  await assert.rejects(attaching, kind("unavailable"));
  assert.deepEqual(world.trace, ["open take"]);
});
