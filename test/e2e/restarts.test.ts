/**
 * Node service and controller are killed and ended in the middle of calls: a call that is repeated converges, a volume
 * that is mounted meanwhile notices nothing, and what was deleted leaves nothing.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { open, readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { Claim, insist } from "./claim.ts";
import { Cluster, useCluster } from "./cluster.ts";
import type { DriverProcess } from "./process.ts";

/** Where in a call its process dies: before it is taken up, early, in its middle, near its end or after it. */
const delaysMs = [0, 10, 40, 150, 400];

const random = new SeededRandom(2077);

/** Makes the call and ends `process` somewhere in it; then starts it again and repeats the call until it succeeds. */
async function interrupted(process: DriverProcess, step: () => Promise<void>): Promise<void> {
  const call = step().then(
    () => undefined,
    (error: unknown) => error,
  );
  await sleep(delaysMs[random.below(delaysMs.length)]);
  await process.restart(random.below(2) === 0 ? "SIGKILL" : "SIGTERM");
  await call;
  await insist(step);
}

/** Appends lines to a file with fsync until it is told to stop; the lines written. */
function writeOn(path: string): { stop: () => Promise<string> } {
  let running = true;
  const work = async (): Promise<string> => {
    const file = await open(path, "a");
    let written = "";
    try {
      for (let line = 0; running; line += 1) {
        const text = `line ${line}\n`;
        await file.write(text);
        await file.sync();
        written += text;
        await sleep(20);
      }
      return written;
    } finally {
      await file.close();
    }
  };
  const done = work();
  return {
    stop: () => {
      running = false;
      return done;
    },
  };
}

kernelTests(
  { url: import.meta.url, name: "node service and controller restarted in calls", timeoutMs: 840_000 },
  () => {
    const started = useCluster(() => Cluster.start());

    test(
      "every call that is cut off converges when it is repeated, and a mounted volume notices nothing",
      { timeout: 600_000 },
      async () => {
        const cluster = started();
        const { controller, nodes } = cluster;
        const [{ service }] = nodes;
        const mounted = new Claim(cluster, { name: "mounted" });
        await mounted.bringUp();
        const mountedBefore = mountAt(await listMounts(), mounted.target);
        const writer = writeOn(`${mounted.target}/log`);
        const claim = new Claim(cluster, { name: "interrupted", use: "xfs" });

        await interrupted(controller, () => claim.create());
        await interrupted(controller, () => claim.publish());
        await interrupted(service, () => claim.stage());
        await interrupted(service, () => claim.publishToPod());
        await writeFile(`${claim.target}/file`, "kept");
        await interrupted(service, () => claim.unpublishFromPod());
        await interrupted(service, () => claim.unstage());
        await interrupted(service, () => claim.stage());
        await interrupted(service, () => claim.publishToPod());
        assert.equal(await readFile(`${claim.target}/file`, "utf8"), "kept");
        for (const step of claim.down().slice(0, 2)) await interrupted(service, step);
        await interrupted(controller, () => claim.unpublish());
        await interrupted(controller, () => claim.delete());
        assert.equal(existsSync(claim.target), false, "the target path is removed");

        const written = await writer.stop();
        assert.equal(await readFile(`${mounted.target}/log`, "utf8"), written);
        assert.ok(written.length > 100);
        assert.deepEqual(mountAt(await listMounts(), mounted.target), mountedBefore);
        const { text } = await nodes[0].get("/metrics");
        assert.doesNotMatch(text, new RegExp(claim.volumeId), "the deleted volume is closed");
        assert.equal(await nodes[0].metric("s3block_volume_failed", mounted.volumeId), 0);
        await mounted.remove();
      },
    );
  },
);
