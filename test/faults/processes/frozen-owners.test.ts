/** Server processes that are frozen for longer than a fail-over: they acknowledge and show nothing afterwards. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { freezeOwners } from "../frozen-owners.ts";

test("owners frozen for longer than a fail-over and thawed acknowledge no flush and show no write", async () => {
  const totals = await freezeOwners({ owners: 3, together: 3, seed: 1 });
  assert.equal(totals.owners, 3);
  assert.ok(totals.flushes >= 9 && totals.refusedFlushes >= 6, JSON.stringify(totals));
});
