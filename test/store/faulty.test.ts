/** The faulty store does what its plan says, and counts it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { type FaultPlan, FaultyStore, listedFaults, randomFaults, type StoreFault } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";

function faultyStore(plan: FaultPlan): { store: FaultyStore; memory: MemoryStore; clock: HurriedClock } {
  const clock = new HurriedClock();
  const memory = new MemoryStore({ clock });
  return { store: new FaultyStore(memory, plan, { clock, random: new SeededRandom(3) }), memory, clock };
}

const body = Buffer.alloc(100, 1);

test("a refused put does nothing, one whose reply is lost does everything", async () => {
  const { store, memory } = faultyStore(listedFaults("put", ["refused", "lost-reply"]));
  await assert.rejects(
    () => store.putIfAbsent("a", [body]),
    (error) => isKind(error, "unavailable"),
  );
  assert.equal(await memory.get("a"), undefined);
  await assert.rejects(() => store.putIfAbsent("b", [body]));
  assert.deepEqual(await memory.get("b"), body);
  assert.equal(await store.putIfAbsent("c", [body]), "created");
});

test("a late put takes effect after its time, with the body as it was when it was sent", async () => {
  const { store, memory, clock } = faultyStore(({ kind }) =>
    kind === "put" ? { fault: "late", delayMs: 1000 } : undefined,
  );
  const borrowed = Buffer.from(body);
  await assert.rejects(() => store.putIfAbsent("a", [borrowed]));
  borrowed.fill(9);
  clock.advance(999);
  assert.equal(await memory.get("a"), undefined);
  clock.advance(1);
  assert.deepEqual(await memory.get("a"), body);
  assert.equal(store.counts.late, 1);
});

test("a short body is corrupt, rot is silent and one bit", async () => {
  const { store, memory } = faultyStore(listedFaults("get", ["short-body", "rot"]));
  await memory.putIfAbsent("a", [body]);
  await assert.rejects(
    () => store.get("a"),
    (error) => isKind(error, "corrupt"),
  );
  const rotten = await store.get("a");
  let flipped = 0;
  for (const byte of rotten ?? []) flipped += (byte ^ 1).toString(2).replaceAll("0", "").length;
  assert.equal(flipped, 1);
  assert.deepEqual(await store.get("a"), body);
});

test("the same seed gives the same faults, and each of them happens", async () => {
  const runOnce = async (): Promise<Record<StoreFault, number>> => {
    const rates = { refused: 0.1, "lost-reply": 0.1, late: 0.1, "short-body": 0.1, rot: 0.1, delayMs: 10 };
    const { store } = faultyStore(randomFaults(new SeededRandom(11), rates));
    for (let index = 0; index < 600; index += 1) {
      await store.putIfAbsent(`k/${index}`, [body]).catch(() => undefined);
      await store.getRange(`k/${index}`, { offset: 0, length: 8 }).catch(() => undefined);
    }
    return store.counts;
  };
  const counts = await runOnce();
  for (const count of Object.values(counts)) assert.ok(count > 20, JSON.stringify(counts));
  assert.deepEqual(await runOnce(), counts);
});
