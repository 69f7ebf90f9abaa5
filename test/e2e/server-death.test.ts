/**
 * The data plane dies under load, by SIGKILL at bad moments and by SIGTERM for an upgrade, and its standby or the next
 * server goes on: filesystems on its devices see no error, wait for no timer that nobody has set, and lose nothing.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { listMounts, mountAt } from "../../src/host/mount.ts";
import { kernelTests } from "../kernel/kernel-tests.ts";
import { Claim } from "./claim.ts";
import { Cluster, useCluster } from "./cluster.ts";
import { run } from "./content.ts";
import { VerifiedLoad } from "./verified-load.ts";

/** Every request has been looked after by then. */
const timerBoundMs = 3000;

async function checksum(path: string): Promise<string> {
  return createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
}

/** Lines of the kernel's log about errors of devices and filesystems. */
async function countComplaints(): Promise<number> {
  const { stdout } = await run("dmesg");
  return (stdout.match(/I\/O error|EXT4-fs error|XFS.*(corruption|shut)/gi) ?? []).length;
}

let cluster: Cluster;

/** Ends the server and starts it again; the milliseconds until all devices are served again. */
async function replaceServer(signal: NodeJS.Signals, volumeIds: readonly string[]): Promise<number> {
  const { server } = cluster.nodes[0];
  const startMs = performance.now();
  await server.stop(signal);
  server.launch();
  await untilServed(volumeIds);
  return performance.now() - startMs;
}

/** The process that serves dies, and its standby goes on; the milliseconds until it serves all devices. */
async function dieWithStandby(volumeIds: readonly string[]): Promise<number> {
  const { server } = cluster.nodes[0];
  const { standbyPid } = await server.logged("a standby is there");
  const startMs = performance.now();
  server.killServing();
  await untilServed(volumeIds);
  const awayMs = performance.now() - startMs;
  const { cause, nextPid } = await server.logged("the serving process has ended: its standby goes on");
  assert.deepEqual([cause, nextPid], ["SIGKILL", standbyPid]);
  await server.logged("the server is ready");
  assert.match((await cluster.nodes[0].get("/metrics")).text, /^s3block_server_takeovers_total 1$/m);
  return awayMs;
}

async function untilServed(volumeIds: readonly string[]): Promise<void> {
  for (const id of volumeIds) {
    await cluster.nodes[0].server.logged("the kernel's connection is renewed", (line) => line["volumeId"] === id);
  }
}

kernelTests({ url: import.meta.url, name: "a data plane that dies under load", timeoutMs: 840_000 }, () => {
  useCluster(async () => {
    cluster = await Cluster.start({ serverFlags: ["--standby=true"] });
    return cluster;
  });

  test(
    "a hand-over and kills under verified loads on ext4 and xfs: no error, no long wait, nothing lost",
    { timeout: 600_000 },
    async () => {
      const claims = (["ext4", "xfs"] as const).map((use) => new Claim(cluster, { name: `load-${use}`, use }));
      for (const claim of claims) await claim.bringUp();
      const ids = claims.map((claim) => claim.volumeId);
      const [node] = cluster.nodes;
      const complaints = await countComplaints();
      const loads = claims.map((claim) => new VerifiedLoad(`${claim.target}/file`, { sizeKib: 6144 }));
      // A request waits for one absence at most: the timer has seen to those of the last one by then.
      await sleep(timerBoundMs);
      const awayMs = [await replaceServer("SIGTERM", ids)];
      await sleep(timerBoundMs);
      awayMs.push(await dieWithStandby(ids));
      await sleep(timerBoundMs);
      const startMs = performance.now();
      await node.server.stop("SIGKILL");
      node.server.launch();
      await node.server.logged("found an attachment of the process before");
      await replaceServer("SIGKILL", ids);
      awayMs.push(performance.now() - startMs);

      await Promise.all(loads.map((each) => each.stop()));
      for (const [index, { writes, errors, longestWaitMs: waitedMs }] of loads.entries()) {
        const { use = "" } = claims[index].options;
        const facts = `${use}: ${writes} writes, longest ${waitedMs} ms, away ${awayMs.join(", ")} ms`;
        process.stdout.write(`${facts}\n`);
        assert.equal(errors, 0);
        // How long a start takes is the machine's business: bounded is that no request waits for a timer of the kernel
        // that nobody has set (30 s), let alone for ever.
        assert.ok(waitedMs < awayMs.reduce((sum, ms) => sum + ms, 0) + 30_000, facts);
        const mount = mountAt(await listMounts(), claims[index].target);
        assert.ok(mount?.superOptions.includes("rw"), "the filesystem went on writing");
      }
      assert.equal(await countComplaints(), complaints, "the kernel saw no error");

      const sums = await Promise.all(claims.map((claim) => checksum(`${claim.target}/file`)));
      for (const claim of claims) await claim.bringDown();
      await node.wipe();
      for (const claim of claims) await claim.bringUp();
      assert.deepEqual(await Promise.all(claims.map((claim) => checksum(`${claim.target}/file`))), sums);
      for (const claim of claims) await claim.remove();
    },
  );
});
