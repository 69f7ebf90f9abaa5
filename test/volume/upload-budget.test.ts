/** The memory of uploads: its bound holds whatever is used, kept and lent, and nobody waits for what is lent. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { type Borrower, UploadBudget } from "../../src/volume/upload-budget.ts";

const MIB = 1024 * 1024;
const largeBytes = 4 * MIB;

class Shelf implements Borrower {
  readonly buffers: Buffer[] = [];

  giveBack(): Buffer | undefined {
    return this.buffers.pop();
  }
}

test("a segment waits where the budget is used up, and is called once when memory comes back", () => {
  const budget = new UploadBudget(2 * largeBytes, largeBytes);
  const [one, two] = [1, 2].map(() => budget.acquire(3 * MIB, () => assert.fail("nothing has to wait"))!);
  let calls = 0;
  assert.equal(
    budget.acquire(100, () => (calls += 1)),
    undefined,
  );
  assert.ok(budget.contended);
  budget.release(one);
  budget.release(two);
  assert.equal(calls, 1);
  assert.ok(!budget.contended);
  assert.equal(budget.usedBytes, 0);
});

test("one large segment goes through whatever the limit is", () => {
  const budget = new UploadBudget(1, largeBytes);
  const buffer = budget.acquire(largeBytes, () => assert.fail("nothing has to wait"));
  assert.equal(buffer?.length, largeBytes);
});

test("a borrower leaves room for an upload, and what is in use, kept and lent stays below the limit", () => {
  const random = new SeededRandom(5);
  const limitBytes = 5 * largeBytes + MIB;
  const budget = new UploadBudget(limitBytes, largeBytes);
  const shelf = new Shelf();
  const used: Buffer[] = [];
  const all = new Set<Buffer>();
  let borrowed = 0;
  for (let step = 0; step < 20_000; step += 1) {
    const what = random.below(4);
    if (what === 0) {
      const buffer = budget.borrow(shelf);
      if (buffer !== undefined) {
        shelf.buffers.push(buffer);
        borrowed += 1;
      }
    } else if (what === 1 && used.length > 0) {
      budget.release(used.splice(random.below(used.length), 1)[0]);
    } else {
      const bytes = 1 + random.below(what === 2 ? MIB : largeBytes);
      const buffer = budget.acquire(bytes, () => undefined);
      const size = bytes > MIB ? largeBytes : bytes;
      assert.equal(buffer === undefined, usedBytes(used) > 0 && usedBytes(used) + size > limitBytes, `step ${step}`);
      if (buffer !== undefined) used.push(buffer);
    }
    all.clear();
    for (const buffer of [...used, ...shelf.buffers]) {
      assert.ok(!all.has(buffer), "no buffer is in two hands");
      all.add(buffer);
    }
    assert.equal(budget.usedBytes, usedBytes(used));
    assert.ok(usedBytes([...all]) <= limitBytes, `step ${step}`);
  }
  assert.ok(borrowed > 100);
});

function usedBytes(buffers: readonly Buffer[]): number {
  return buffers.reduce((sum, buffer) => sum + buffer.length, 0);
}
