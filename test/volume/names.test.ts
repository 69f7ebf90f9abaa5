/**
 * Names that come back, over a store whose requests take effect late: no request of an ended deletion takes anything
 * from a later volume of the name, and of the volumes of a name one at a time has it.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind, type OperationError } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { FaultyStore, type PlannedFault, randomFaults } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { encodeMeta, type VolumeMeta } from "../../src/volume/format/control-records.ts";
import type { VolumeId } from "../../src/volume/identity.ts";
import { metaKey, metaPrefix, nameKey } from "../../src/volume/keys.ts";
import { nameTable, releaseTable } from "../../src/volume/name-tables.ts";
import { getMeta, viewAgain, viewName } from "../../src/volume/names.ts";
import { unvisited, watchTables } from "../recovery/visits.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";
import { keysBesidesTombstones, keysOf, spec } from "./catalog-environment.ts";

const visited = watchTables();
const ID = "vol-1" as VolumeId;
const MINUTE_MS = 60_000;

interface Laboratory {
  clock: VirtualClock;
  truth: MemoryStore;
  random: SeededRandom;
  /** A catalog of its own process, whose requests fare as `plan` says. */
  catalog: (plan?: (kind: string, key: string) => PlannedFault | undefined) => Catalog;
}

function laboratory(seed: number): Laboratory {
  const clock = new VirtualClock();
  const truth = new MemoryStore({ clock });
  const random = new SeededRandom(seed);
  return {
    clock,
    truth,
    random,
    catalog: (plan = () => undefined) => {
      const parts = { clock, random };
      const faulty = new FaultyStore(truth, ({ kind, key }) => plan(kind, key), parts);
      const store: ObjectStore = new RetryingStore(faulty, { ...parts, log: nullLog, limits: { deadlineMs: 20_000 } });
      return new Catalog({ ...parts, store, log: nullLog, fenceForDeletion: async () => undefined });
    },
  };
}

/** The first DELETE of the name's record number 1 has no answer, and takes effect a minute later. */
function lateDelete(): (kind: string, key: string) => PlannedFault | undefined {
  let isLeft = true;
  return (kind, key) => {
    if (kind !== "delete" || key !== nameKey(ID, 1) || !isLeft) return undefined;
    isLeft = false;
    return { fault: "late", delayMs: MINUTE_MS };
  };
}

test("a DELETE that had no answer and takes effect late leaves the next volume of the name alone", async () => {
  const { clock, truth, catalog } = laboratory(1);
  const old = await catalog().create(spec("vol-1"));
  await catalog(lateDelete()).delete(ID);
  assert.equal(await getMeta(truth, ID), undefined);
  const made = await catalog().create(spec("vol-1"));
  assert.notEqual(made.uid, old.uid);
  await clock.sleep(2 * MINUTE_MS);
  assert.deepEqual(await catalog().must(ID), made);
  assert.deepEqual((await catalog().list()).volumes, [made]);
  await catalog().delete(ID);
  assert.deepEqual(await keysBesidesTombstones(truth), []);
  assert.deepEqual((await catalog().list()).volumes, []);
});

test("a deletion that died before its DELETE was answered is ended by another call, and its DELETE may still come", async () => {
  const { clock, catalog } = laboratory(2);
  await catalog().create(spec("vol-1"));
  const plan = lateDelete();
  let isDead = false;
  const dying = catalog((kind, key) => {
    const fault = isDead ? ({ fault: "refused" } as const) : plan(kind, key);
    isDead ||= fault !== undefined;
    return fault;
  });
  await assert.rejects(dying.delete(ID), (error) => isKind(error, "unavailable"));
  await catalog().delete(ID);
  const made = await catalog().create(spec("vol-1"));
  await clock.sleep(2 * MINUTE_MS);
  assert.deepEqual(await catalog().must(ID), made);
});

test("a name that a tombstone has freed is free, though its record still stands, and is cleared by the next deletion", async () => {
  const { truth, catalog } = laboratory(7);
  const old = await catalog().create(spec("vol-1"));
  const dying = catalog((kind, key) =>
    kind === "delete" && key === nameKey(ID, 1) ? { fault: "refused" } : undefined,
  );
  await assert.rejects(dying.delete(ID), (error) => isKind(error, "unavailable"));
  assert.ok((await keysOf(truth)).includes(nameKey(ID, 1)));
  const made = await catalog().create(spec("vol-1"));
  assert.equal(made.number, 3);
  await catalog().delete(ID);
  assert.deepEqual(await keysBesidesTombstones(truth), [], `of ${old.uid} and ${made.uid}`);
});

test("a deletion whose every request is answered leaves nothing; one whose DELETE took effect neither", async () => {
  for (const fault of [undefined, "lost-reply"] as const) {
    const { truth, catalog } = laboratory(3);
    for (let round = 0; round < 3; round += 1) {
      const made = await catalog().create(spec("vol-1"));
      assert.equal(made.number, 1);
      const plan = (kind: string, key: string) => (kind === "delete" && key === nameKey(ID, 1) ? { fault } : undefined);
      await catalog(fault === undefined ? undefined : (plan as () => PlannedFault)).delete(ID);
      assert.deepEqual(await keysOf(truth), []);
    }
  }
});

test("a creation that takes effect after its volume was deleted brings no volume back that was ever used", async () => {
  const { clock, truth, catalog } = laboratory(4);
  let isLeft = true;
  const made = await catalog((kind, key) => {
    if (kind !== "put" || key !== nameKey(ID, 1) || !isLeft) return undefined;
    isLeft = false;
    return { fault: "late", delayMs: MINUTE_MS };
  }).create(spec("vol-1"));
  await catalog().delete(ID);
  await clock.sleep(2 * MINUTE_MS);
  assert.equal(await getMeta(truth, ID), undefined, "nobody has confirmed it");
  const again = await catalog().create(spec("vol-1"));
  assert.notEqual(again.uid, made.uid);
  await catalog().delete(ID);
  assert.deepEqual(await keysOf(truth), []);
});

test("a creation that comes below a tombstone gives way to the volume above it, before and after", async () => {
  for (const when of [0.5, 1.5]) {
    const { clock, truth, catalog } = laboratory(5);
    await catalog().create(spec("vol-1"));
    await catalog(lateDelete()).delete(ID);
    // As if its creator had looked before the first volume was made.
    const stray = await laboratory(6).catalog().create(spec("vol-1"));
    clock.after(1.2 * MINUTE_MS, () => void truth.putIfAbsent(nameKey(ID, 1), [encodeMeta(Buffer.alloc(16), stray)]));
    await clock.sleep(when * MINUTE_MS);
    const made = await catalog().create(spec("vol-1"));
    await clock.sleep(2 * MINUTE_MS);
    assert.notEqual(made.uid, stray.uid);
    assert.deepEqual(await catalog().create(spec("vol-1")), made);
    await catalog().delete(ID);
    assert.equal(await getMeta(truth, ID), undefined);
  }
});

/** Repeats a call as a user does, until it works. */
async function untilDone<T>(clock: VirtualClock, call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      assert.ok(isKind(error, "unavailable", "busy"), (error as OperationError).message);
      await clock.sleep(500);
    }
  }
}

async function liveOn(seed: number, seen: Set<string>): Promise<void> {
  const { clock, truth, random, catalog } = laboratory(seed);
  const faults = randomFaults(random, { refused: 0.1, "lost-reply": 0.1, late: 0.25, delayMs: 3 * MINUTE_MS });
  const quick = (kind: string): PlannedFault | undefined => {
    const planned = faults({ kind: kind as "put", key: "" });
    return planned?.fault === "late" ? planned : { ...planned, delayMs: random.fraction() * 50 };
  };
  const abandoned: Promise<unknown>[] = [];
  const uids = new Set<string>();
  for (let round = 0; round < 12; round += 1) {
    // Several processes at a time, some of which nobody waits for any more.
    const racer = catalog(quick)
      .create(spec("vol-1"))
      .catch(() => undefined);
    const made = await untilDone(clock, () => catalog(quick).create(spec("vol-1")));
    await racer;
    assert.ok(!uids.has(made.uid), `seed ${seed}: a deleted volume has come back`);
    uids.add(made.uid);
    for (let look = random.below(4); look >= 0; look -= 1) {
      assert.deepEqual(await getMeta(truth, ID), made, `seed ${seed}: the volume has lost its name`);
      await clock.sleep(random.fraction() * 2 * MINUTE_MS);
    }
    abandoned.push(
      catalog(quick)
        .delete(ID)
        .catch(() => undefined),
    );
    await untilDone(clock, () => catalog(quick).delete(ID));
    assert.notEqual((await getMeta(truth, ID))?.uid, made.uid, `seed ${seed}: a deleted volume still has its name`);
    if (made.number > 1) seen.add("a number above a tombstone");
  }
  await Promise.all(abandoned);
  await clock.sleep(10 * MINUTE_MS);
  await catalog().delete(ID);
  await catalog().delete(ID);
  assert.equal(await getMeta(truth, ID), undefined, `seed ${seed}`);
  assert.deepEqual((await catalog().list()).volumes, [] as VolumeMeta[]);
}

test("whatever comes late, a volume has its name from its creation to its deletion, and never again", async () => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 10; seed += 1) await liveOn(seed, seen);
  assert.ok(seen.has("a number above a tombstone"));
});

test("every row of the tables of names has been met", () => {
  assert.deepEqual([...unvisited(nameTable, visited), ...unvisited(releaseTable, visited)], []);
});

/** `truth`, but for what `changes` says. */
function seenBy(truth: MemoryStore, changes: Partial<Pick<ObjectStore, "get" | "list" | "delete">>): ObjectStore {
  return new Proxy<ObjectStore>(truth, {
    get: (target, name) => {
      const value: unknown = Reflect.get(Object.hasOwn(changes, name) ? changes : target, name);
      return typeof value === "function" ? (value.bind(target) as unknown) : value;
    },
  });
}

test("a reader whose listing is answered after a whole deletion does not take the volume for a living one", async () => {
  const { truth, catalog } = laboratory(8);
  const made = await catalog().create(spec("vol-1"));
  let isDeleted = false;
  const reader = seenBy(truth, {
    list: async (prefix, options) => {
      if (prefix === metaPrefix(made) && !isDeleted) {
        isDeleted = true;
        await catalog().delete(ID);
      }
      return await truth.list(prefix, options);
    },
  });
  assert.deepEqual(await viewName(reader, ID), { state: "nothing" });
  assert.ok(isDeleted);
});

test("whatever of a deletion a reader sees, who has read the name before: once marked, the volume is never in force", async () => {
  for (const order of ["as asked for", "the other way round"]) {
    const { truth, catalog, clock, random } = laboratory(9);
    const made = await catalog().create(spec("vol-1"));
    const before = await viewName(truth, ID);
    assert.ok(before.state === "in force");
    const nameRecord = await truth.get(nameKey(ID, 1));
    const reader = seenBy(truth, {
      get: (key, options) => (key === nameKey(ID, 1) ? Promise.resolve(nameRecord) : truth.get(key, options)),
    });
    const seen: string[] = [];
    const look = async (): Promise<void> => {
      const { state } = await viewAgain(reader, before.named);
      seen.push(state);
      assert.ok((await truth.get(metaKey(made, 2))) === undefined || state !== "in force", seen.join());
    };
    // A store that takes a DELETE of many for many of one.
    const torn = seenBy(truth, {
      delete: async (keys) => {
        for (const key of order === "as asked for" ? keys : keys.toReversed()) {
          await truth.delete([key]);
          await look();
        }
      },
    });
    const parts = { clock, random, log: nullLog };
    await new Catalog({ ...parts, store: torn, fenceForDeletion: look }).delete(ID);
    assert.deepEqual(await keysOf(truth), []);
    assert.ok(seen.length > 3);
    assert.ok(!seen.includes("in force"), seen.join());
  }
});
