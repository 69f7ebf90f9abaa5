/** The serving process is killed in the midst of a verified load: the file system on its device must not notice. */
import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openKernelNbd } from "../../src/nbd/kernel/kernel-nbd.ts";
import { VerifiedLoad } from "../e2e/verified-load.ts";
import { kernelTests } from "./kernel-tests.ts";

const run = promisify(execFile);
const requestTimerMs = 500;
const backendIdentifier = "s3block:test:crash";
const program = fileURLToPath(new URL("serve-file.ts", import.meta.url));

let directory: string;
let server: ChildProcess | undefined;

/** Starts a serving process; resolves with the device's path once it answers. */
async function startServer(): Promise<string> {
  const words = [program, join(directory, "image"), String(256 * 2 ** 20), backendIdentifier, String(requestTimerMs)];
  server = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "inherit"] });
  assert.ok(server.stdout !== null);
  const [line] = (await once(createInterface(server.stdout), "line")) as [string];
  return line;
}

async function killServer(): Promise<void> {
  assert.ok(server !== undefined);
  const ended = once(server, "exit");
  server.kill("SIGKILL");
  await ended;
}

kernelTests({ url: import.meta.url, name: "a killed server is replaced under load", timeoutMs: 840_000 }, () => {
  before(() => {
    directory = mkdtempSync(join(tmpdir(), "server-crash-"));
  });
  after(async () => {
    const kernel = await openKernelNbd({ clock: systemClock, log: nullLog, interface: "netlink" });
    const left = kernel.findByBackend(backendIdentifier);
    if (left !== undefined) await kernel.disconnect({ index: left.index, backendIdentifier, force: true });
    if (server?.exitCode === null) await killServer();
    rmSync(directory, { recursive: true, force: true });
  });

  test("a verified load on ext4 goes on over two kills, stalled no longer than the kernel's timer", async () => {
    const device = await startServer();
    const at = join(directory, "mount");
    await run("mkfs.ext4", ["-q", device]);
    await run("mount", ["--mkdir", device, at]);
    const load = new VerifiedLoad(join(at, "file"), { sizeKib: 8192 });
    for (let round = 0; round < 2; round += 1) {
      await systemClock.sleep(1500);
      await killServer();
      assert.equal(await startServer(), device);
    }
    await load.stop();
    const stallSeconds = load.longestWaitMs / 1000;
    process.stdout.write(`${load.writes} writes, longest stall ${stallSeconds.toFixed(1)} s\n`);
    assert.equal(load.errors, 0);
    // Some looks, and what two starts may take on a busy machine; without the timer it would be the default's 30 s.
    assert.ok(stallSeconds < 24, `stalled for ${stallSeconds} s`);
    await run("umount", [at]);
    await run("fsck.ext4", ["-fn", device]);
  });
});
