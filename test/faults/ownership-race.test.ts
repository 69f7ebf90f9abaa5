/** Nodes that race for a volume while replies of conditional puts are lost: no false fence, no two owners. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryRaces } from "./memory-races.ts";
import { proxiedRaces } from "./proxied-races.ts";

test("thousands of conditional puts with a fifth of the replies lost fence nobody falsely and make no second owner", async () => {
  const totals = await memoryRaces(3000, 1);
  assert.ok(totals.putRequests > 3500 && totals.lostReplies > 600, JSON.stringify(totals));
  assert.ok(totals.latePuts > 100 && totals.conflicts > 100, JSON.stringify(totals));
  assert.ok(totals.openings > 15 && totals.fencedOwners > 10 && totals.lostRaces > 2, JSON.stringify(totals));
  assert.ok(totals.acknowledgedFlushes > 1000, JSON.stringify(totals));
});

test("the same on a real S3 server behind a proxy that cuts connections after the server has applied a put", async () => {
  const { puts, openings, fencedOwners, acknowledgedFlushes } = await proxiedRaces(200, 7);
  assert.ok(puts["lose-reply"] > 20 && puts.late > 2 && puts.conflict > 2, JSON.stringify(puts));
  assert.ok(openings > 3 && fencedOwners > 1 && acknowledgedFlushes > 30, `${openings} ${acknowledgedFlushes}`);
});
