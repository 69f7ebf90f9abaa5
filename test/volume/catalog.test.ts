/** The catalog's calls one at a time, on every kind of store. Races are in catalog-race.test.ts. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { Catalog, type VolumeSpec } from "../../src/volume/catalog.ts";
import { encodeMeta, encodeTombstone, type VolumeMeta } from "../../src/volume/format/control-records.ts";
import {
  type Epoch,
  MAX_VOLUME_BYTES,
  MIN_VOLUME_BYTES,
  type SegmentSeq,
  type VolumeId,
} from "../../src/volume/identity.ts";
import { checkpointKey, epochKey, mapKey, metaKey, nameKey, segmentKey } from "../../src/volume/keys.ts";
import { getMeta } from "../../src/volume/names.ts";
import { catalogOver, keysOf, nextTurn, outcomeOf, spec, storeKinds, turnClock } from "./catalog-environment.ts";

const ID = "vol-1" as VolumeId;
const TOMBSTONE_UID = "f".repeat(32) as VolumeMeta["uid"];

function onEveryStore(name: string, run: (store: ObjectStore, catalog: Catalog) => Promise<void>): void {
  for (const kind of storeKinds) {
    test(`${name} (${kind.name})`, async () => {
      const { store, dispose } = kind.open();
      try {
        await run(store, catalogOver(store, 1));
      } finally {
        await dispose();
      }
    });
  }
}

/** Objects as an owner leaves them: claims, log, maps, checkpoints. */
async function writeData(store: ObjectStore, volume: VolumeMeta, segments = 3): Promise<void> {
  const epoch = 1 as Epoch;
  const keys = [epochKey(volume, epoch), mapKey(volume, epoch, 1), checkpointKey(volume, epoch, 1)];
  for (let index = 0; index < segments; index += 1) keys.push(segmentKey(volume.uid, epoch, (index * 7) as SegmentSeq));
  for (const key of keys) await store.putIfAbsent(key, [Buffer.alloc(64)]);
}

onEveryStore("a created volume is what was asked for, to this and every other catalog", async (store, catalog) => {
  const made = await catalog.create(spec("vol-1"));
  const { uid, createdMs, ...rest } = made;
  const defaults = { codec: "none", encryption: null, lineage: [], number: 1, deleted: false };
  assert.deepEqual(rest, { ...spec("vol-1"), ...defaults });
  assert.match(uid, /^[0-9a-f]{32}$/);
  assert.equal(createdMs, turnClock.now());
  assert.deepEqual(await catalogOver(store, 2).must(ID), made);
});

onEveryStore("creating the same volume again answers the existing one", async (store, catalog) => {
  const made = await catalog.create(spec("vol-1"));
  assert.deepEqual(await catalogOver(store, 2).create(spec("vol-1")), made);
  assert.deepEqual(await keysOf(store), [metaKey(made, 1), nameKey(ID, 1)].toSorted());
});

test("creating a volume that exists with another property is a conflict that names it", async () => {
  const { store } = storeKinds[0].open();
  const catalog = catalogOver(store, 1);
  await catalog.create(spec("vol-1"));
  const cases: [RegExp, Partial<VolumeSpec>][] = [
    [/another name/, { name: "other" }],
    [/another sizeBytes.*existing=1073741824 wanted=2147483648/, { sizeBytes: 2 * 1024 ** 3 }],
    [/another blockSizeBytes/, { blockSizeBytes: 512 }],
    [/another durability/, { durability: "local" }],
    [/another fsType/, { fsType: "xfs" }],
    [/another fsType.*wanted=none/, { fsType: undefined }],
    [/another parameter.*parameter=bucket/, { parameters: { bucket: "c" } }],
    [/another parameter.*parameter=prefix/, { parameters: { bucket: "b", prefix: "p" } }],
    [/another parameter.*parameter=bucket/, { parameters: {} }],
  ];
  for (const [message, changes] of cases) {
    await assert.rejects(
      catalog.create(spec("vol-1", changes)),
      (error) => isKind(error, "conflict") && message.test(error.message),
    );
  }
});

test("what no volume can be is invalid, named, and leaves nothing behind", async () => {
  const { store } = storeKinds[0].open();
  const catalog = catalogOver(store, 1);
  const cases: [RegExp, Partial<VolumeSpec>][] = [
    [/between 1 MiB and 64 TiB/, { sizeBytes: 0 }],
    [/between/, { sizeBytes: -4096 }],
    [/between/, { sizeBytes: MIN_VOLUME_BYTES - 4096 }],
    [/between/, { sizeBytes: MAX_VOLUME_BYTES + 4096 }],
    [/between/, { sizeBytes: Number.NaN }],
    [/between/, { sizeBytes: Number.POSITIVE_INFINITY }],
    [/between/, { sizeBytes: MIN_VOLUME_BYTES + 0.5 }],
    [/multiple of 4096.*roundedBytes=1052672/, { sizeBytes: MIN_VOLUME_BYTES + 1 }],
    [/block size/, { blockSizeBytes: 1024 }],
    [/durability/, { durability: "both" as "s3" }],
    [/volume id/, { id: "../etc" as VolumeId }],
    [/volume id/, { id: "a".repeat(64) as VolumeId }],
    [/name is too long/, { name: "n".repeat(1025) }],
  ];
  for (const [message, changes] of cases) {
    await assert.rejects(
      catalog.create(spec("vol-1", changes)),
      (error) => isKind(error, "invalid") && message.test(error.message),
      String(message),
    );
  }
  assert.deepEqual(await keysOf(store), []);
  for (const sizeBytes of [MIN_VOLUME_BYTES, MAX_VOLUME_BYTES])
    await catalog.create(spec(`v${sizeBytes}`, { sizeBytes }));
});

onEveryStore("an unknown volume is undefined, not found, and no error where it is taken away", async (_, catalog) => {
  assert.equal(await catalog.get(ID), undefined);
  assert.equal(await catalog.getPublication(ID), undefined);
  await assert.rejects(catalog.must(ID), (error) => isKind(error, "not-found"));
  await assert.rejects(catalog.publish(ID, "node-1", false), (error) => isKind(error, "not-found"));
  await catalog.unpublish(ID, "node-1");
  await catalog.delete(ID);
});

onEveryStore("a publication holds for one node until it is released", async (store, catalog) => {
  await catalog.create(spec("vol-1"));
  const first = await catalog.publish(ID, "node-1", false);
  assert.deepEqual(first, { number: 1, nodeId: "node-1", readOnly: false });
  assert.deepEqual(await catalog.publish(ID, "node-1", false), first);
  assert.deepEqual(await catalogOver(store, 2).getPublication(ID), first);
  await assert.rejects(
    catalog.publish(ID, "node-2", false),
    (error) => isKind(error, "in-use") && error.message.endsWith("nodeId=node-1"),
  );
  await assert.rejects(catalog.publish(ID, "node-1", true), (error) => isKind(error, "conflict"));
  await catalog.unpublish(ID, "node-2");
  assert.deepEqual(await catalog.getPublication(ID), first);
  await catalog.unpublish(ID, "node-1");
  await catalog.unpublish(ID, "node-1");
  assert.equal(await catalog.getPublication(ID), undefined);
  assert.deepEqual(await catalog.publish(ID, "node-2", true), { number: 3, nodeId: "node-2", readOnly: true });
  await catalog.unpublish(ID, "");
  assert.equal(await catalog.getPublication(ID), undefined);
  await assert.rejects(catalog.publish(ID, "", false), (error) => isKind(error, "invalid"));
});

test("publications are numbered on and on while only the newest two are kept", async () => {
  const { store } = storeKinds[0].open();
  const catalog = catalogOver(store, 1);
  await catalog.create(spec("vol-1"));
  for (let round = 0; round < 20; round += 1) {
    assert.equal((await catalog.publish(ID, `node-${round}`, false)).number, round * 2 + 1);
    await catalog.unpublish(ID, `node-${round}`);
    await nextTurn();
  }
  const records = (await keysOf(store)).filter((key) => key.includes("/publication/"));
  assert.deepEqual(
    records.map((key) => Number.parseInt(key.slice(-16), 16)),
    [39, 40],
  );
});

onEveryStore(
  "a deleted volume leaves nothing behind, and its id can be used again under another uid",
  async (store, catalog) => {
    const kept = await catalog.create(spec("vol-2"));
    await writeData(store, kept);
    const before = await keysOf(store);
    const made = await catalog.create(spec("vol-1"));
    await writeData(store, made, 300);
    await catalog.publish(ID, "node-1", false);
    await catalog.unpublish(ID, "node-1");
    await catalog.delete(ID);
    await catalog.delete(ID);
    assert.deepEqual(await keysOf(store), before);
    const again = await catalog.create(spec("vol-1", { sizeBytes: MIN_VOLUME_BYTES }));
    assert.notEqual(again.uid, made.uid);
  },
);

onEveryStore("a published volume is not deleted, and the error names the node", async (store, catalog) => {
  await catalog.create(spec("vol-1"));
  await catalog.publish(ID, "node-1", false);
  const before = await keysOf(store);
  await assert.rejects(
    catalog.delete(ID),
    (error) => isKind(error, "in-use") && error.message.includes("nodeId=node-1"),
  );
  assert.deepEqual(await keysOf(store), before);
});

test("owners are fenced after the volume is marked and before anything of it is removed", async () => {
  const { store } = storeKinds[0].open();
  const made = await catalogOver(store, 1).create(spec("vol-1"));
  await writeData(store, made);
  const before = await keysOf(store);
  const catalog = catalogOver(store, 2, {
    fenceForDeletion: async (volume) => {
      assert.equal(volume.uid, made.uid);
      const now = await keysOf(store);
      assert.deepEqual(
        now.filter((key) => key !== metaKey(made, 2)),
        before,
      );
      assert.equal((await getMeta(store, ID))?.deleted, true);
      assert.equal(await outcomeOf(catalog.create(spec("vol-1"))), "busy");
      assert.equal(await outcomeOf(catalog.publish(ID, "node-1", false)), "not-found");
      assert.equal(await catalog.get(ID), undefined);
      assert.deepEqual((await catalog.list()).volumes, []);
    },
  });
  await catalog.delete(ID);
  assert.deepEqual(await keysOf(store), []);
});

test("a volume whose owners cannot be fenced keeps its data, and is deleted by the next try", async () => {
  const { store } = storeKinds[0].open();
  const made = await catalogOver(store, 1).create(spec("vol-1"));
  await writeData(store, made);
  const failing = catalogOver(store, 2, { fenceForDeletion: () => Promise.reject(new Error("no")) });
  await assert.rejects(failing.delete(ID), /no/);
  assert.equal((await keysOf(store)).length, 9);
  await catalogOver(store, 3).delete(ID);
  assert.deepEqual(await keysOf(store), []);
});

test("what an earlier volume of the name left behind neither hides a volume nor marks it deleted", async () => {
  const { store } = storeKinds[0].open();
  const catalog = catalogOver(store, 1);
  const random = new SeededRandom(5);
  const made = await catalog.create(spec("vol-1"));
  const stray = { ...made, uid: TOMBSTONE_UID, number: 2, deleted: true };
  await store.putIfAbsent(metaKey(stray, 2), [encodeMeta(random.bytes(16), stray)]);
  const tombstone = { uid: TOMBSTONE_UID, number: 2, frees: 1, timeMs: 1 };
  await store.putIfAbsent(nameKey(ID, 2), [encodeTombstone(random.bytes(16), ID, tombstone)]);
  assert.deepEqual(await catalog.get(ID), made);
  assert.deepEqual((await catalog.list()).volumes, [made]);
  await catalog.delete(ID);
  assert.deepEqual(await keysOf(store), [nameKey(ID, 2)]);
  assert.deepEqual((await catalog.list()).volumes, []);
  assert.equal((await catalog.create(spec("vol-1"))).number, 3);
  await catalog.delete(ID);
  await catalog.delete(ID);
  assert.deepEqual(await keysOf(store), [nameKey(ID, 2)]);
});

test("damaged metadata is reported, never taken for a missing volume", async () => {
  const { store } = storeKinds[0].open();
  const catalog = catalogOver(store, 1);
  await store.putIfAbsent(nameKey(ID, 1), [Buffer.alloc(200)]);
  for (const call of [catalog.get(ID), catalog.create(spec("vol-1")), catalog.delete(ID), catalog.list()]) {
    await assert.rejects(call, (error) => isKind(error, "corrupt"));
  }
});

onEveryStore("every volume is listed once, in pages of any size", async (store, catalog) => {
  const ids = ["a", "a-b", "a0", "a1", "b", "b-", "zz", "0"];
  for (const id of ids) await writeData(store, await catalog.create(spec(id)), 1);
  await store.putIfAbsent("v1/volumes/UPPER/meta/0000000000000001", [Buffer.alloc(64)]);
  const tombstone = { uid: TOMBSTONE_UID, number: 2, frees: 1, timeMs: 1 };
  const freeName = "b0" as VolumeId;
  await store.putIfAbsent(nameKey(freeName, 2), [encodeTombstone(Buffer.alloc(16), freeName, tombstone)]);
  for (let limit = 1; limit <= ids.length + 1; limit += 1) {
    const listed: string[] = [];
    let after: VolumeId | undefined;
    do {
      const page = await catalog.list(after === undefined ? { limit } : { limit, after });
      assert.ok(page.volumes.length <= limit);
      listed.push(...page.volumes.map((volume) => volume.id));
      after = page.next;
    } while (after !== undefined);
    assert.deepEqual(listed.toSorted(), ids.toSorted());
  }
});

onEveryStore("a listing goes on after a volume that was deleted meanwhile", async (_, catalog) => {
  for (const id of ["a", "b", "c"]) await catalog.create(spec(id));
  const { volumes, next } = await catalog.list({ limit: 2 });
  assert.deepEqual([volumes.length, next], [2, "b"]);
  await catalog.delete("b" as VolumeId);
  const rest = await catalog.list({ after: "b" as VolumeId });
  assert.deepEqual([rest.volumes.map((volume) => volume.id), rest.next], [["c"], undefined]);
});

onEveryStore("a location is found by its hash, however often it is registered", async (store, catalog) => {
  const location = { url: "s3://bucket/prefix", endpoint: "https://s3.example", region: "r" };
  const hash = await catalog.registerLocation(location);
  assert.match(hash, /^[0-9a-f]{16}$/);
  assert.equal(await catalogOver(store, 2).registerLocation(location), hash);
  const other = await catalog.registerLocation({ ...location, region: "q" });
  assert.notEqual(other, hash);
  assert.deepEqual(await catalog.getLocation(hash), location);
  assert.equal(await catalog.getLocation("0".repeat(16)), undefined);
  assert.equal(await catalog.getLocation("../../meta"), undefined);
  assert.deepEqual([...(await catalog.listLocations()).keys()], [hash, other].toSorted());
});
