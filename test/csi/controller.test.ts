/** The controller over its socket and a memory store: what the specification asks of each call. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { OperationError } from "../../src/base/errors.ts";
import type { ListVolumesResponse, Volume } from "../../src/csi/messages.ts";
import { blockCapability, mountCapability } from "./csi-client.ts";
import { NODE_ID, OTHER_NODE_ID, startTestController, type TestController } from "./plugins.ts";

let controller: TestController;
before(async () => {
  controller = await startTestController();
});
after(() => controller.close());

const gib = 1024 ** 3;
const unknownId = `vol-${"0".repeat(32)}`;

async function create(name: string, fields: object = {}): Promise<Volume> {
  const request = { name, volumeCapabilities: [mountCapability], ...fields };
  return (await controller.client.call<{ volume: Volume }>("Controller", "createVolume", request)).volume;
}

function createCode(name: string, fields: object = {}): Promise<number> {
  const request = { name, volumeCapabilities: [mountCapability], ...fields };
  return controller.client.codeOf("Controller", "createVolume", request);
}

function publishCode(volumeId: string, fields: object = {}): Promise<number> {
  const request = { volumeId, nodeId: NODE_ID, volumeCapability: mountCapability, ...fields };
  return controller.client.codeOf("Controller", "controllerPublishVolume", request);
}

function unpublish(volumeId: string, nodeId = ""): Promise<object> {
  return controller.client.call("Controller", "controllerUnpublishVolume", { volumeId, nodeId });
}

async function list(fields: object = {}): Promise<ListVolumesResponse> {
  return controller.client.call<ListVolumesResponse>("Controller", "listVolumes", fields);
}

test("identity tells name, version, the controller service, and is ready", async () => {
  const { client } = controller;
  const info = await client.call("Identity", "getPluginInfo");
  assert.equal(info.name, "s3block.csi");
  const { capabilities } = await client.call<{ capabilities: { service: { type: string } }[] }>(
    "Identity",
    "getPluginCapabilities",
  );
  assert.deepEqual(
    capabilities.map(({ service }) => service.type),
    ["CONTROLLER_SERVICE"],
  );
  assert.deepEqual((await client.call("Identity", "probe")).ready, { value: true });
});

test("a volume made twice by one name is one volume, whose id is derived from the name", async () => {
  const first = await create("twice", { capacityRange: { requiredBytes: String(gib) } });
  const second = await create("twice", { capacityRange: { requiredBytes: String(gib) } });
  assert.deepEqual(second, first);
  assert.match(first.volumeId, /^vol-[0-9a-f]{32}$/);
  assert.equal(first.capacityBytes, String(gib));
  assert.deepEqual(first.volumeContext, { durability: "s3", blockSize: "4096", fsType: "ext4" });
});

test("sixteen calls for one name at once make one volume, and those that are not answered are told to retry", async () => {
  const codes = await Promise.all(Array.from({ length: 16 }, () => createCode("raced")));
  assert.equal(codes.filter((answer) => answer === code.OK).length >= 1, true);
  assert.ok(codes.every((answer) => answer === code.OK || answer === code.ABORTED));
  const { entries } = await list();
  const { volumeId } = await create("raced");
  assert.equal(entries.filter((entry) => entry.volume.volumeId === volumeId).length, 1);
});

test("another size, durability, block size or filesystem under the same name is refused", async () => {
  await create("same", { capacityRange: { requiredBytes: String(gib) } });
  const others = [
    { capacityRange: { requiredBytes: String(2 * gib) } },
    { capacityRange: { limitBytes: String(gib / 2) } },
    { parameters: { durability: "local" } },
    { parameters: { blockSize: "512" } },
    { parameters: { fsType: "xfs" }, volumeCapabilities: [{ ...mountCapability, mount: {} }] },
    { volumeCapabilities: [blockCapability] },
  ];
  for (const fields of others) assert.equal(await createCode("same", fields), code.ALREADY_EXISTS);
  assert.equal(await createCode("same", { capacityRange: { requiredBytes: "1", limitBytes: String(gib) } }), code.OK);
});

test("required and limit are honoured, and without either a volume has one gibibyte", async () => {
  const size = async (name: string, range: object | undefined): Promise<number> =>
    Number((await create(name, range === undefined ? {} : { capacityRange: range })).capacityBytes);
  assert.equal(await size("default", undefined), gib);
  assert.equal(await size("zeroes", { requiredBytes: "0", limitBytes: "0" }), gib);
  assert.equal(await size("odd", { requiredBytes: "1048577" }), 1048576 + 4096);
  assert.equal(await size("tiny", { requiredBytes: "1" }), 1048576);
  assert.equal(await size("limited", { limitBytes: "5000000" }), Math.floor(5000000 / 4096) * 4096);
  assert.equal(await size("both", { requiredBytes: "2000000", limitBytes: "2002944" }), 2002944);
  assert.equal(await size("huge", { requiredBytes: String(64 * 1024 * gib) }), 64 * 1024 * gib);
});

test("sizes that cannot be are out of range, and negative ones invalid", async () => {
  const codes: [object, number][] = [
    [{ requiredBytes: String(64 * 1024 * gib + 1) }, code.OUT_OF_RANGE],
    [{ requiredBytes: "9223372036854775807" }, code.OUT_OF_RANGE],
    [{ limitBytes: "4096" }, code.OUT_OF_RANGE],
    [{ requiredBytes: "2000001", limitBytes: "2000002" }, code.OUT_OF_RANGE],
    [{ requiredBytes: "-1" }, code.INVALID_ARGUMENT],
    [{ limitBytes: "-9223372036854775808" }, code.INVALID_ARGUMENT],
    [{ requiredBytes: "20", limitBytes: "10" }, code.INVALID_ARGUMENT],
  ];
  for (const [capacityRange, expected] of codes) {
    assert.equal(await createCode("impossible", { capacityRange }), expected, JSON.stringify(capacityRange));
  }
});

test("an xfs volume is at least as large as mkfs.xfs needs it", async () => {
  const xfs = { volumeCapabilities: [{ ...mountCapability, mount: { fsType: "xfs" } }] };
  const volume = await create("xfs", { ...xfs, capacityRange: { requiredBytes: "1" } });
  assert.ok(Number(volume.capacityBytes) >= 300 * 1024 ** 2);
  const small = { ...xfs, capacityRange: { limitBytes: String(100 * 1024 ** 2) } };
  assert.equal(await createCode("xfs-small", small), code.OUT_OF_RANGE);
});

test("names of 128 characters, with slashes, dots and emoji are accepted; longer, empty and control ones are not", async () => {
  for (const name of ["n".repeat(128), "../../etc/passwd", "a/b.c", "\u{1f4be}".repeat(128), "--help", "a b\tc"]) {
    assert.match((await create(name)).volumeId, /^vol-[0-9a-f]{32}$/);
  }
  for (const name of ["", "n".repeat(129), "a\u0000b", "a\u007fb", "a\u0085b"]) {
    assert.equal(await createCode(name), code.INVALID_ARGUMENT);
  }
});

test("unknown parameters, content sources and mutable parameters are refused, the message naming what is wrong", async () => {
  const refusal = (fields: object): Promise<unknown> => create("refused", fields).catch((error: unknown) => error);
  assert.match(String(await refusal({ parameters: { durabilty: "s3" } })), /durabilty/);
  assert.match(String(await refusal({ volumeContentSource: { snapshot: { snapshotId: "x" } } })), /snapshots/);
  assert.match(String(await refusal({ mutableParameters: { iops: "1" } })), /iops/);
  assert.equal(await createCode("refused", { parameters: { big: "x".repeat(4097) } }), code.INVALID_ARGUMENT);
  assert.equal(await createCode("refused", { volumeCapabilities: [] }), code.INVALID_ARGUMENT);
});

test("access from several nodes is refused with the way out", async () => {
  for (const mode of ["MULTI_NODE_READER_ONLY", "MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_MULTI_WRITER", "UNKNOWN"]) {
    const volumeCapabilities = [{ block: {}, accessMode: { mode } }];
    assert.equal(await createCode("shared", { volumeCapabilities }), code.INVALID_ARGUMENT, mode);
  }
});

test("a volume of another bucket has its location in its id, and later calls find it by that alone", async () => {
  const parameters = { bucket: "other-bucket", prefix: "team/a", endpoint: "https://s3.example.org", region: "eu-1" };
  const volume = await create("located", { parameters });
  assert.match(volume.volumeId, /^loc-[0-9a-f]{16}-[0-9a-f]{32}$/);
  assert.deepEqual(volume.volumeContext, { ...parameters, durability: "s3", blockSize: "4096", fsType: "ext4" });
  const { publishContext } = await controller.client.call<{ publishContext: object }>(
    "Controller",
    "controllerPublishVolume",
    { volumeId: volume.volumeId, nodeId: NODE_ID, volumeCapability: mountCapability },
  );
  assert.deepEqual(publishContext, {
    publication: "1",
    readOnly: "false",
    durability: "s3",
    url: "s3://other-bucket/team/a",
    endpoint: "https://s3.example.org",
    region: "eu-1",
    fsType: "ext4",
  });
  const listed = (await list()).entries.find((entry) => entry.volume.volumeId === volume.volumeId);
  assert.deepEqual(listed?.status.publishedNodeIds, [NODE_ID]);
  await unpublish(volume.volumeId);
  await controller.client.call("Controller", "deleteVolume", { volumeId: volume.volumeId });
  assert.equal(controller.catalogs.store("s3://other-bucket/team/a").totals().objects, 0);
});

test("a store that cannot be opened leaves nothing half made", async () => {
  const totals = controller.catalogs.store().totals();
  controller.catalogs.failure = new OperationError("invalid", "no such bucket: create it");
  assert.equal(await createCode("homeless", { parameters: { bucket: "missing" } }), code.INVALID_ARGUMENT);
  controller.catalogs.failure = undefined;
  assert.deepEqual(controller.catalogs.store().totals(), totals);
});

test("deleting is repeatable, ignores what never was, and waits for the volume to be unpublished", async () => {
  const { client } = controller;
  const { volumeId } = await create("deleted");
  assert.equal(await publishCode(volumeId), code.OK);
  assert.equal(await client.codeOf("Controller", "deleteVolume", { volumeId }), code.FAILED_PRECONDITION);
  await unpublish(volumeId, NODE_ID);
  const absent = [volumeId, volumeId, unknownId, "Not An Id", "../x", `loc-${"1".repeat(16)}-${"2".repeat(32)}`];
  for (const id of absent)
    assert.equal(await client.codeOf("Controller", "deleteVolume", { volumeId: id }), code.OK, id);
  assert.equal(await client.codeOf("Controller", "deleteVolume", {}), code.INVALID_ARGUMENT);
  assert.equal(await publishCode(volumeId), code.NOT_FOUND);
});

test("a volume is published to one node at a time, with one kind of access", async () => {
  const { volumeId } = await create("published");
  assert.equal(await publishCode(volumeId), code.OK);
  assert.equal(await publishCode(volumeId), code.OK);
  assert.equal(await publishCode(volumeId, { readonly: true }), code.ALREADY_EXISTS);
  const refused = await controller.client
    .call("Controller", "controllerPublishVolume", {
      volumeId,
      nodeId: OTHER_NODE_ID,
      volumeCapability: mountCapability,
    })
    .catch((error: unknown) => error as { code: number; details: string });
  assert.equal(refused.code, code.FAILED_PRECONDITION);
  assert.match(String(refused.details), /node-1/);
  await unpublish(volumeId, OTHER_NODE_ID);
  assert.equal(await publishCode(volumeId, { nodeId: OTHER_NODE_ID }), code.FAILED_PRECONDITION);
  await unpublish(volumeId, "");
  assert.equal(await publishCode(volumeId, { nodeId: OTHER_NODE_ID, readonly: true }), code.OK);
  await unpublish(volumeId, OTHER_NODE_ID);
  await unpublish(volumeId, OTHER_NODE_ID);
});

test("publishing an unknown volume or to an unknown node is NOT_FOUND, unpublishing either is fine", async () => {
  const { volumeId } = await create("nodes");
  assert.equal(await publishCode(unknownId), code.NOT_FOUND);
  assert.equal(await publishCode(volumeId, { nodeId: "no-such-node" }), code.NOT_FOUND);
  assert.equal(await publishCode(volumeId, { nodeId: "n".repeat(257) }), code.INVALID_ARGUMENT);
  assert.equal(await publishCode(volumeId, { nodeId: "a\nb" }), code.INVALID_ARGUMENT);
  assert.equal(await publishCode("Not An Id"), code.INVALID_ARGUMENT);
  assert.equal(await publishCode(volumeId, { volumeCapability: undefined }), code.INVALID_ARGUMENT);
  assert.equal(
    await publishCode(volumeId, {
      volumeCapability: { mount: { fsType: "xfs" }, accessMode: { mode: "SINGLE_NODE_WRITER" } },
    }),
    code.INVALID_ARGUMENT,
  );
  await unpublish(unknownId, NODE_ID);
  await unpublish("Not An Id");
  await unpublish(volumeId, "no-such-node");
});

test("capabilities are confirmed where they are served, else explained", async () => {
  const { client } = controller;
  const { volumeId, volumeContext } = await create("validated");
  const validate = (fields: object): Promise<{ confirmed: object | null; message: string }> =>
    client.call("Controller", "validateVolumeCapabilities", {
      volumeId,
      volumeCapabilities: [mountCapability],
      ...fields,
    });
  assert.ok((await validate({ volumeContext })).confirmed);
  assert.ok((await validate({ volumeCapabilities: [mountCapability, blockCapability] })).confirmed);
  const unsupported = [
    { volumeCapabilities: [{ block: {}, accessMode: { mode: "MULTI_NODE_MULTI_WRITER" } }] },
    { volumeCapabilities: [{ mount: { fsType: "btrfs" }, accessMode: { mode: "SINGLE_NODE_WRITER" } }] },
    { volumeCapabilities: [{ mount: { fsType: "xfs" }, accessMode: { mode: "SINGLE_NODE_WRITER" } }] },
    { volumeContext: { ...volumeContext, durability: "local" } },
    { parameters: { durability: "local" } },
    { parameters: { nonsense: "1" } },
  ];
  for (const fields of unsupported) {
    const { confirmed, message } = await validate(fields);
    assert.equal(confirmed, null, JSON.stringify(fields));
    assert.notEqual(message, "");
  }
  const request = { volumeId: unknownId, volumeCapabilities: [mountCapability] };
  assert.equal(await client.codeOf("Controller", "validateVolumeCapabilities", request), code.NOT_FOUND);
  assert.equal(await client.codeOf("Controller", "validateVolumeCapabilities", { volumeId }), code.INVALID_ARGUMENT);
});

test("pages of every size show every volume once, over all stores, and strange tokens are refused", async () => {
  for (const name of ["page-1", "page-2", "page-3"]) {
    await create(name);
    await create(name, { parameters: { bucket: "bucket-a" } });
    await create(name, { parameters: { bucket: "bucket-b" } });
  }
  const all = (await list()).entries.map((entry) => entry.volume.volumeId);
  assert.equal(new Set(all).size, all.length);
  assert.ok(all.length >= 9);
  for (const maxEntries of [1, 2, 3, 5, all.length, 5000]) {
    const seen: string[] = [];
    let startingToken = "";
    do {
      const page = await list({ maxEntries, startingToken });
      assert.ok(page.entries.length <= maxEntries);
      seen.push(...page.entries.map((entry) => entry.volume.volumeId));
      startingToken = page.nextToken;
    } while (startingToken !== "");
    assert.deepEqual(seen, all, `pages of ${maxEntries}`);
  }
  for (const startingToken of ["invalid-token", "own", "own:../x", `${"f".repeat(16)}:vol-1`, "own:vol-1\n"]) {
    assert.equal(await controller.client.codeOf("Controller", "listVolumes", { startingToken }), code.ABORTED);
  }
  assert.equal(await controller.client.codeOf("Controller", "listVolumes", { maxEntries: -1 }), code.INVALID_ARGUMENT);
});

test("what is not served answers UNIMPLEMENTED", async () => {
  for (const method of ["createSnapshot", "controllerExpandVolume", "getCapacity", "controllerModifyVolume"]) {
    assert.equal(await controller.client.codeOf("Controller", method), code.UNIMPLEMENTED, method);
  }
});
