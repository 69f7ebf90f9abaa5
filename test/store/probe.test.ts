/** The probe trusts stores that keep their promises, and refuses every one that breaks one of them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ObjectStore, PutOutcome } from "../../src/store/object-store.ts";
import { PROBE_PREFIX, probeStore } from "../../src/store/probe.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";

function parts(seed = 1): { clock: HurriedClock; random: SeededRandom } {
  return { clock: new HurriedClock(), random: new SeededRandom(seed) };
}

/** A memory store with some methods replaced. */
function brokenStore(broken: (memory: MemoryStore) => Partial<ObjectStore>): {
  store: ObjectStore;
  memory: MemoryStore;
} {
  const memory = new MemoryStore();
  const changes = broken(memory);
  const store = new Proxy(memory, {
    get(target, name) {
      const value: unknown = Reflect.get(name in changes ? changes : target, name);
      return typeof value === "function" ? (value.bind(target) as unknown) : value;
    },
  });
  return { store, memory };
}

async function refusalOf(store: ObjectStore, peers: ObjectStore[] = []): Promise<OperationError> {
  try {
    await probeStore(store, { ...parts(), peers });
  } catch (error) {
    assert.ok(error instanceof OperationError);
    return error;
  }
  assert.fail("the probe trusted the store");
}

test("a store that keeps its promises is trusted, and nothing stays behind", async () => {
  const memory = new MemoryStore();
  await memory.putIfAbsent("v1/volumes/a", [Buffer.from("kept")]);
  await probeStore(memory, { ...parts(), keys: 50 });
  assert.deepEqual(memory.totals(), { objects: 1, bytes: 4 });
});

test("a store that ignores the condition is refused, with the way out named", async () => {
  const { store, memory } = brokenStore((inner) => ({
    async putIfAbsent(key, body): Promise<PutOutcome> {
      void inner.delete([key]);
      return inner.putIfAbsent(key, body);
    },
  }));
  const error = await refusalOf(store);
  assert.equal(error.kind, "invalid");
  assert.match(error.message, /If-None-Match.* two nodes .* use a store that has them/);
  assert.equal(memory.totals().objects, 0);
});

test("a store that looks before it writes, but not both at once, is refused", async () => {
  const { store } = brokenStore((inner) => ({
    async putIfAbsent(key, body): Promise<PutOutcome> {
      const isThere = (await inner.get(key)) !== undefined;
      await new Promise((resolve) => setImmediate(resolve));
      if (isThere) return "exists";
      await inner.putIfAbsent(key, body);
      return "created";
    },
  }));
  assert.match((await refusalOf(store)).message, /If-None-Match.*winners=16/);
});

test("a store that lets nobody win is refused", async () => {
  const { store } = brokenStore(() => ({ putIfAbsent: async () => "exists" }));
  assert.match((await refusalOf(store)).message, /winners=0/);
});

test("two ways that do not lead to the same store are refused", async () => {
  assert.match((await refusalOf(new MemoryStore(), [new MemoryStore()])).message, /winners=2/);
});

test("a store that keeps a loser's bytes, or damages them, is refused", async () => {
  const { store } = brokenStore((inner) => ({
    async get(key) {
      const body = await inner.get(key);
      body?.writeUInt8(body[100] ^ 1, 100);
      return body;
    },
  }));
  assert.match((await refusalOf(store)).message, /other bytes/);
});

test("a store that answers with the wrong range is refused", async () => {
  const { store } = brokenStore((inner) => ({
    getRange: (key, range) => inner.getRange(key, { offset: 0, length: range.length }),
  }));
  assert.match((await refusalOf(store)).message, /another range/);
});

test("a store that lists late, or out of order, is refused", async () => {
  const late = brokenStore(() => ({ list: async () => ({ objects: [], prefixes: [], next: undefined }) }));
  assert.match((await refusalOf(late.store)).message, /does not list/);
  const disordered = brokenStore((inner) => ({
    async list(prefix) {
      const page = await inner.list(prefix);
      return { ...page, objects: page.objects.toReversed() };
    },
  }));
  assert.match((await refusalOf(disordered.store)).message, /does not list/);
});

test("a store that may not be written to, or not be deleted from, is refused with its own words", async () => {
  const refuse = async (): Promise<never> => {
    throw new OperationError("invalid", "access denied");
  };
  const readOnly = brokenStore(() => ({ putIfAbsent: refuse }));
  assert.match((await refusalOf(readOnly.store)).message, /access denied/);
  const undeletable = brokenStore(() => ({ delete: refuse }));
  assert.match((await refusalOf(undeletable.store)).message, /access denied/);
});

test("probes of several processes at the same time do not meet", async () => {
  const memory = new MemoryStore();
  await Promise.all([1, 2, 3].map((seed) => probeStore(memory, parts(seed))));
  assert.deepEqual((await memory.list(PROBE_PREFIX)).objects, []);
});
