/** Deletion with the real fence: a former owner is stopped, wherever the deletion died, and nothing stays behind. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import type { Catalog } from "../../src/volume/catalog.ts";
import {
  claimEpoch,
  fenceForDeletion,
  type FencingEnvironment,
  newestClaim,
  startEpoch,
} from "../../src/volume/fencing.ts";
import { encodeSegmentHead } from "../../src/volume/format/segment.ts";
import type { SegmentSeq, VolumeId } from "../../src/volume/identity.ts";
import { segmentKey, type VolumeRef } from "../../src/volume/keys.ts";
import {
  catalogOver,
  dyingAt,
  keysBesidesTombstones,
  keysOf,
  outcomeOf,
  shuffled,
  spec,
  turnClock,
} from "./catalog-environment.ts";
import { dataHead, fenceHead, startHead } from "./format/samples.ts";

const ID = "vol-1" as VolumeId;

function fencingOver(store: ObjectStore, seed: number): FencingEnvironment {
  return { store, clock: turnClock, random: new SeededRandom(seed) };
}

function fencingCatalog(store: ObjectStore, seed: number): Catalog {
  const environment = fencingOver(store, seed + 1000);
  return catalogOver(store, seed, {
    fenceForDeletion: (volume) => fenceForDeletion(environment, volume, "controller"),
  });
}

/** An owner that has started and written `segments` of its log; answers how it writes the next one. */
async function own(store: ObjectStore, volume: VolumeRef, segments: number): Promise<() => Promise<string>> {
  const environment = fencingOver(store, segments);
  const claim = { nodeId: "node-1", journalId: Buffer.alloc(16, 1), publication: 0 };
  const epoch = await claimEpoch(environment, volume, await newestClaim(environment, volume), claim);
  await startEpoch(environment, volume, epoch, { ...startHead, parent: undefined, baseCheckpoint: undefined });
  let sequence = 0;
  const write = async (): Promise<string> => {
    sequence += 1;
    const header = { uid: volume.uid, epoch, sequence, nonce: environment.random.bytes(16) };
    const empty = { ...dataHead, extents: fenceHead.extents, dataLength: 0 };
    return store.putIfAbsent(segmentKey(volume.uid, epoch, sequence as SegmentSeq), [encodeSegmentHead(header, empty)]);
  };
  for (let index = 0; index < segments; index += 1) assert.equal(await write(), "created");
  return write;
}

test("an owner that still runs meets the fence before anything of the volume is removed", async () => {
  const store = new MemoryStore();
  const made = await fencingCatalog(store, 1).create(spec("vol-1"));
  const writeNext = await own(store, made, 5);
  const environment = fencingOver(store, 9);
  const catalog = catalogOver(store, 2, {
    fenceForDeletion: async (volume) => {
      await fenceForDeletion(environment, volume, "controller");
      assert.equal(await writeNext(), "exists");
    },
  });
  await catalog.delete(ID);
  assert.deepEqual(await keysOf(store), []);
});

for (const fault of ["refused", "lost-reply"] as const) {
  test(`a deletion with its fence that dies at any of its changes (${fault}) is finished by the next one`, async () => {
    for (let at = 1, died = true; died; at += 1) {
      const store = new MemoryStore();
      const made = await fencingCatalog(store, 1).create(spec("vol-1"));
      await own(store, made, 3);
      await own(store, made, 20);
      died = (await outcomeOf(fencingCatalog(dyingAt(store, at, fault), 2).delete(ID))) !== "ok";
      await fencingCatalog(store, 3).delete(ID);
      assert.deepEqual(await keysBesidesTombstones(store), [], `change ${at}`);
      assert.ok(died || at > 20, `${at} changes were tried`);
    }
  });
}

test("deletions with their fences that race are finished by a retry, with nothing left", async () => {
  for (let seed = 1; seed <= 30; seed += 1) {
    const store = new MemoryStore();
    const made = await fencingCatalog(store, 1).create(spec("vol-1"));
    await own(store, made, 20);
    const outcomes = await Promise.all(
      [1, 2, 3].map((index) => outcomeOf(fencingCatalog(shuffled(store, seed * 10 + index), index).delete(ID))),
    );
    for (const outcome of outcomes) assert.ok(outcome === "ok" || outcome === "busy", `seed ${seed}: ${outcome}`);
    await fencingCatalog(store, 4).delete(ID);
    assert.deepEqual(await keysBesidesTombstones(store), [], `seed ${seed}`);
  }
});
