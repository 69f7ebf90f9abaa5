/**
 * Catalogs of many processes on one store: requests are delayed in an order drawn from a seed, processes die between
 * any two of their changes. A failing test names its seed.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { FaultyStore } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { Epoch, SegmentSeq, VolumeId } from "../../src/volume/identity.ts";
import { epochKey, metaKey, nameKey, segmentKey } from "../../src/volume/keys.ts";
import { getMeta } from "../../src/volume/names.ts";
import { getPublication, publish, unpublish } from "../../src/volume/publication.ts";
import { nullLog } from "../../src/base/log.ts";
import {
  catalogOver,
  dyingAt,
  keysBesidesTombstones,
  keysOf,
  nextTurn,
  outcomeOf,
  shuffled,
  spec,
  storeKinds,
  turnClock,
} from "./catalog-environment.ts";

const ID = "vol-1" as VolumeId;
const seeds = Array.from({ length: 20 }, (_, index) => index + 1);
const sixteen = Array.from({ length: 16 }, (_, index) => index);

function tally(outcomes: string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const outcome of outcomes) counts[outcome] = (counts[outcome] ?? 0) + 1;
  return counts;
}

for (const kind of storeKinds) {
  test(`of 16 racing creations of different volumes one wins (${kind.name})`, async () => {
    for (const seed of kind.name === "memory" ? seeds : seeds.slice(0, 3)) {
      const { store, dispose } = kind.open();
      const outcomes = await Promise.all(
        sixteen.map((index) => {
          const catalog = catalogOver(shuffled(store, seed * 100 + index), index + 1);
          return outcomeOf(catalog.create(spec("vol-1", { sizeBytes: 1024 ** 3 + index * 4096 })));
        }),
      );
      assert.deepEqual(tally(outcomes), { ok: 1, conflict: 15 }, `seed ${seed}`);
      await dispose();
    }
  });

  test(`of 16 nodes that race for a volume one gets it (${kind.name})`, async () => {
    for (const seed of kind.name === "memory" ? seeds : seeds.slice(0, 3)) {
      const { store, dispose } = kind.open();
      await catalogOver(store, 99).create(spec("vol-1"));
      const outcomes = await Promise.all(
        sixteen.map((index) => {
          const catalog = catalogOver(shuffled(store, seed * 100 + index), index + 1);
          return outcomeOf(catalog.publish(ID, `node-${index}`, false));
        }),
      );
      assert.deepEqual(tally(outcomes), { ok: 1, "in-use": 15 }, `seed ${seed}`);
      const winner = await catalogOver(store, 99).getPublication(ID);
      assert.equal(winner?.nodeId, `node-${outcomes.indexOf("ok")}`);
      await dispose();
    }
  });
}

test("16 racing creations of the same volume all get the same uid", async () => {
  for (const seed of seeds) {
    const store = new MemoryStore();
    const made = await Promise.all(
      sixteen.map((index) => catalogOver(shuffled(store, seed * 100 + index), index + 1).create(spec("vol-1"))),
    );
    assert.equal(new Set(made.map((meta) => meta.uid)).size, 1, `seed ${seed}`);
  }
});

test("publications never let two nodes hold a volume at the same time, whatever stands still in between", async () => {
  let granted = 0;
  for (const seed of seeds) {
    const store = new MemoryStore();
    const volume = await catalogOver(store, 99).create(spec("vol-1"));
    const holders = new Set<string>();
    const contender = async (nodeId: string, contenderSeed: number): Promise<void> => {
      const random = new SeededRandom(contenderSeed);
      const slow = shuffled(store, contenderSeed, random.below(4) === 0 ? 150 : 5);
      const options = { store: slow, clock: turnClock, random, log: nullLog };
      for (let round = 0; round < 15; round += 1) {
        if ((await outcomeOf(publish(options, volume, { nodeId, readOnly: false }))) !== "ok") {
          await turnClock.sleep(random.below(10));
          continue;
        }
        granted += 1;
        holders.add(nodeId);
        assert.deepEqual([...holders], [nodeId], `seed ${seed}`);
        await turnClock.sleep(random.below(5));
        assert.equal((await getPublication(store, volume))?.nodeId, nodeId, `seed ${seed}`);
        holders.delete(nodeId);
        await unpublish(options, volume, nodeId);
      }
    };
    await Promise.all([1, 2, 3, 4, 5].map((index) => contender(`node-${index}`, seed * 10 + index)));
  }
  assert.ok(granted > 100, `${granted} publications took place`);
});

test("a publisher that stood still while old records were removed does not get a number below the newest", async () => {
  const store = new MemoryStore();
  const quick = catalogOver(store, 1);
  const volume = await quick.create(spec("vol-1"));
  const held = Promise.withResolvers<void>();
  const frozen = new FaultyStore(store, ({ kind }) => (kind === "put" ? { delayMs: 1 } : undefined), {
    clock: { ...turnClock, sleep: () => held.promise },
    random: new SeededRandom(1),
  });
  const late = catalogOver(frozen, 2).publish(ID, "node-late", false);
  for (let round = 0; round < 5; round += 1) {
    await quick.publish(ID, "node-1", false);
    await quick.unpublish(ID, "node-1");
    await nextTurn();
  }
  await quick.publish(ID, "node-1", false);
  held.resolve();
  assert.equal(await outcomeOf(late), "in-use");
  assert.equal((await getPublication(store, volume))?.nodeId, "node-1");
});

test("a node and a deletion that race for a volume: one of them gets it, never both", async () => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 200; seed += 1) {
    const store = new MemoryStore();
    const volume = await catalogOver(store, 99).create(spec("vol-1"));
    await store.putIfAbsent(segmentKey(volume.uid, 1 as Epoch, 1 as SegmentSeq), [Buffer.alloc(64)]);
    const [published, deleted] = await Promise.all([
      outcomeOf(catalogOver(shuffled(store, seed * 2), 1).publish(ID, "node-1", false)),
      outcomeOf(catalogOver(shuffled(store, seed * 2 + 1), 2).delete(ID)),
    ]);
    seen.add(`${published} ${deleted}`);
    if (published === "ok") {
      assert.equal(deleted, "in-use", `seed ${seed}`);
      assert.ok(
        (await keysOf(store)).some((key) => key.startsWith("v1/log/")),
        `seed ${seed}: data is still there`,
      );
      await catalogOver(store, 3).unpublish(ID, "node-1");
    }
    await catalogOver(store, 4).delete(ID);
    assert.deepEqual(await keysBesidesTombstones(store), [], `seed ${seed}`);
  }
  assert.ok(seen.has("ok in-use") && seen.has("not-found ok"), [...seen].join(", "));
});

test("deletions that race end with nothing left and no error that a retry would not cure", async () => {
  for (const seed of seeds) {
    const store = new MemoryStore();
    const volume = await catalogOver(store, 99).create(spec("vol-1"));
    for (let number = 0; number < 40; number += 1) {
      await store.putIfAbsent(segmentKey(volume.uid, 1 as Epoch, number as SegmentSeq), [Buffer.alloc(64)]);
    }
    const catalogs = [1, 2, 3, 4].map((index) => catalogOver(shuffled(store, seed * 10 + index), index));
    const outcomes = await Promise.all(catalogs.map((catalog) => outcomeOf(catalog.delete(ID))));
    assert.deepEqual(tally(outcomes), { ok: 4 }, `seed ${seed}`);
    assert.deepEqual(await keysBesidesTombstones(store), [], `seed ${seed}`);
  }
});

test("a deletion that stood still does not take a new volume of the same id with it", async () => {
  const store = new MemoryStore();
  const quick = catalogOver(store, 1);
  await quick.create(spec("vol-1"));
  const slow = catalogOver(store, 2, {
    fenceForDeletion: async () => {
      await quick.delete(ID);
      await quick.create(spec("vol-1"));
    },
  });
  await slow.delete(ID);
  assert.equal((await quick.must(ID)).name, "name of vol-1");
});

/** Deletes with a process that dies at change `at`; true where it died. */
async function deleteAndDie(at: number, fault: "refused" | "lost-reply"): Promise<boolean> {
  const store = new MemoryStore();
  const first = catalogOver(store, 1);
  const volume = await first.create(spec("vol-1"));
  for (const number of [0, 1, 2, 256, 257]) {
    await store.putIfAbsent(segmentKey(volume.uid, 1 as Epoch, number as SegmentSeq), [Buffer.alloc(64)]);
  }
  await store.putIfAbsent(epochKey(volume, 1 as Epoch), [Buffer.alloc(64)]);
  const outcome = await outcomeOf(catalogOver(dyingAt(store, at, fault), 2).delete(ID));
  const meta = await getMeta(store, ID);
  const data = (await keysOf(store)).filter((key) => !key.includes("/meta/") && !key.includes("/removal/"));
  if (meta !== undefined && !meta.deleted) assert.equal(data.length, 6, `change ${at}: a live volume has all its data`);
  if (meta === undefined) assert.deepEqual(data, [], `change ${at}: a volume without metadata has no data`);
  const created = await outcomeOf(first.create(spec("vol-1", { sizeBytes: 2 ** 20 })));
  assert.equal(created, meta === undefined ? "ok" : meta.deleted ? "busy" : "conflict", `change ${at}`);
  await catalogOver(store, 3).delete(ID);
  assert.deepEqual(await keysBesidesTombstones(store), [], `change ${at}`);
  return outcome !== "ok";
}

for (const fault of ["refused", "lost-reply"] as const) {
  test(`a deletion that dies at any of its changes (${fault}) is finished by the next one`, async () => {
    let at = 1;
    while (await deleteAndDie(at, fault)) at += 1;
    assert.ok(at > 7, `${at - 1} changes were tried`);
  });
}

test("a creation that dies before or after its only change is repeated with the same result", async () => {
  const store = new MemoryStore();
  assert.equal(await outcomeOf(catalogOver(dyingAt(store, 1, "refused"), 1).create(spec("vol-1"))), "unavailable");
  assert.deepEqual(await keysOf(store), []);
  assert.equal(await outcomeOf(catalogOver(dyingAt(store, 1, "lost-reply"), 1).create(spec("vol-1"))), "unavailable");
  const made = await catalogOver(store, 2).create(spec("vol-1"));
  assert.deepEqual(await keysOf(store), [metaKey(made, 1), nameKey(ID, 1)].toSorted());
  assert.deepEqual(await catalogOver(store, 3).create(spec("vol-1")), made);
});
