/**
 * `npm start`: the whole way of a volume with the real parts, on this machine's kernel where that has nbd and we are
 * root, else in a User-Mode-Linux guest, in which this file runs itself again. Exit status 0: every check held.
 * The store is the one of the environment (S3BLOCK_STORE, S3BLOCK_S3_…, AWS_…), below a prefix of its own; without
 * one a directory. It leaves nothing behind but, where it fails, the logs of the processes, whose place it prints.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { machineHasNbd, runInGuest } from "../kernel/guest.ts";
import { Laboratory } from "./laboratory.ts";
import { walk } from "./walk.ts";

const guestMemoryMib = 3072;
const guestTimeoutMs = 15 * 60_000;
const interruptedStatus = 130;
const isGuest = process.env["S3BLOCK_GUEST"] === "1";

/** The walk on the kernel under us. Everything is taken away again before it returns. */
async function runHere(logDirectory: string): Promise<number> {
  const base = process.env["S3BLOCK_STORE"] ?? "";
  const run = `demo-${process.pid}-${Date.now().toString(36)}`;
  const storeUrl = base === "" ? undefined : `${base.replace(/\/$/, "")}/${run}`;
  const laboratory = await Laboratory.make({ storeUrl, logDirectory });
  let status = 1;
  const interrupted = new Promise<never>((_, reject) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      process.on(signal, () => {
        laboratory.interrupt(signal);
        status = interruptedStatus;
        reject(new Error(`ended by ${signal}: taking everything away again`));
      });
    }
  });
  try {
    const seconds = await Promise.race([walk(laboratory), interrupted]);
    status = 0;
    process.stdout.write(`\nRESULT: passed, every check held (${seconds.toFixed(0)} s)\n`);
  } catch (error) {
    process.stdout.write(`\nRESULT: ${status === interruptedStatus ? "interrupted" : "FAILED"}: ${describe(error)}\n`);
  }
  try {
    await laboratory.close();
  } catch (error) {
    process.stdout.write(`${describe(error)}\n`);
    if (status === 0) status = 1;
  }
  return status;
}

/** The same in a guest, whose kernel has nbd and whose network is its own loopback. */
async function runThere(logDirectory: string): Promise<number> {
  if (process.env["S3BLOCK_STORE"]?.startsWith("s3:") === true) {
    process.stdout.write(
      "S3BLOCK_STORE names a bucket, and this machine cannot take a volume to it: mounting needs a kernel with nbd and\n" +
        "root, and the guest kernel that stands in where they are missing reaches no network.\n" +
        "Either run this as root where `modprobe nbd` works, or unset S3BLOCK_STORE to keep the volume in a directory.\n",
    );
    return 1;
  }
  process.stdout.write("==> this machine's kernel has no nbd, or we are not root: booting a User-Mode-Linux guest\n");
  const { status, kernelLog } = await runInGuest({
    command: [process.execPath, fileURLToPath(import.meta.url)],
    environment: { S3BLOCK_DEMO_LOGS: logDirectory },
    memoryMib: guestMemoryMib,
    timeoutMs: guestTimeoutMs,
    shares: [logDirectory],
    onOutput: (text) => process.stdout.write(text),
  });
  if (status !== 0 && kernelLog !== "") process.stdout.write(`the guest's kernel log:\n${kernelLog}`);
  return status;
}

async function main(): Promise<number> {
  const given = process.env["S3BLOCK_DEMO_LOGS"];
  if (isGuest && given !== undefined) return runHere(given);
  const logDirectory = mkdtempSync(join(tmpdir(), "s3block-demo-logs-"));
  const here = machineHasNbd();
  const removeLogs = (): void => rmSync(logDirectory, { recursive: true, force: true });
  if (!here) {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      process.once(signal, () => {
        removeLogs();
        process.exit(interruptedStatus);
      });
    }
  }
  const status = await (here ? runHere(logDirectory) : runThere(logDirectory)).catch((error: unknown) => {
    process.stdout.write(`RESULT: FAILED: ${describe(error)}\n`);
    return 1;
  });
  if (status === 0 || status === interruptedStatus) removeLogs();
  else process.stdout.write(`The logs of the processes are in ${logDirectory}\n`);
  return status;
}

process.exit(await main());
