/** The budget of reads: bounded, fair, and free again whatever happens. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { ReadBudget } from "../../src/volume/read-budget.ts";

const settled = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));

test("requests are admitted in order, and a small one does not overtake a large one that waits", async () => {
  const budget = new ReadBudget(100);
  const order: string[] = [];
  await budget.acquire(60);
  const large = budget.acquire(70).then(() => order.push("large"));
  const small = budget.acquire(10).then(() => order.push("small"));
  assert.equal(budget.tryAcquire(1), false);
  await settled();
  assert.deepEqual(order, []);
  budget.release(60);
  await Promise.all([large, small]);
  assert.deepEqual(order, ["large", "small"]);
  assert.equal(budget.usedBytes(), 80);
});

test("a request larger than the budget has it alone", async () => {
  const budget = new ReadBudget(100);
  assert.ok(budget.tryAcquire(10));
  const huge = budget.acquire(500);
  await settled();
  assert.equal(budget.usedBytes(), 10);
  budget.release(10);
  await huge;
  assert.equal(budget.tryAcquire(1), false);
  budget.release(500);
  assert.equal(budget.usedBytes(), 0);
});

test("what is to be spared is not taken", () => {
  const budget = new ReadBudget(100);
  assert.ok(budget.tryAcquire(50, 50));
  assert.equal(budget.tryAcquire(10, 50), false);
  assert.ok(budget.tryAcquire(10));
});

test("one that gives up lets those behind it in and takes nothing", async () => {
  const budget = new ReadBudget(100);
  const abort = new AbortController();
  await budget.acquire(60);
  const given = budget.acquire(70, abort.signal);
  const behind = budget.acquire(40);
  abort.abort();
  await assert.rejects(given, (error) => isKind(error, "unavailable"));
  await behind;
  assert.equal(budget.usedBytes(), 100);
  await assert.rejects(budget.acquire(1, abort.signal), (error) => isKind(error, "unavailable"));
  budget.release(100);
  assert.equal(budget.usedBytes(), 0);
});
