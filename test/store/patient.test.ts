/** A store that refuses for reasons people can mend: who waits, who is told at once, and how often it is said. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import type { Log } from "../../src/base/log.ts";
import { nullLog } from "../../src/base/log.ts";
import type { ObjectStore } from "../../src/store/object-store.ts";
import { PatientStore } from "../../src/store/patient.ts";
import { VirtualClock } from "../simulation/virtual-clock.ts";

const HOUR = 3_600_000;

function bench(failure: (nowMs: number) => OperationError | undefined) {
  const clock = new VirtualClock();
  const said: string[] = [];
  const log: Log = { ...nullLog, error: (message) => void said.push(message) };
  let requests = 0;
  const inner = {
    location: "test:",
    async get() {
      requests += 1;
      const error = failure(clock.monotonicMs());
      if (error !== undefined) throw error;
      return Buffer.from("there");
    },
  } as unknown as ObjectStore;
  return { clock, said, store: new PatientStore(inner, { clock, log }), requests: () => requests };
}

test("while a volume is served, refusals are waited out and told once a minute, however many requests wait", async () => {
  const { clock, said, store, requests } = bench((nowMs) =>
    nowMs < HOUR ? new OperationError("invalid", "denied") : undefined,
  );
  store.serving();
  const bodies = await Promise.all(Array.from({ length: 20 }, () => store.get("k")));
  assert.ok(bodies.every((body) => body?.toString() === "there"));
  assert.ok(clock.monotonicMs() < HOUR + 5001, `answered after ${clock.monotonicMs()} ms`);
  assert.ok(requests() <= 20 + HOUR / 5000 + 20, `${requests()} requests`);
  assert.ok(said.length >= 58 && said.length <= 61, `${said.length} lines`);
});

test("before it serves, and for what is corrupt or fenced, the refusal is told at once", async () => {
  const early = bench(() => new OperationError("invalid", "denied"));
  await assert.rejects(early.store.get("k"), { kind: "invalid" });
  for (const kind of ["corrupt", "fenced"] as const) {
    const { store, requests } = bench(() => new OperationError(kind, "no"));
    store.serving();
    await assert.rejects(store.get("k"), { kind });
    assert.equal(requests(), 1);
  }
});

test("a request that is given up waits no longer", async () => {
  const { clock, store } = bench(() => new OperationError("not-found", "no such bucket"));
  store.serving();
  const controller = new AbortController();
  const waiting = assert.rejects(store.get("k", { signal: controller.signal }), /enough/);
  await clock.sleep(60_000);
  controller.abort(new Error("enough"));
  await waiting;
});
