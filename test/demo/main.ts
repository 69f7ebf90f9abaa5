/**
 * `npm start`: the whole way of a volume with the real parts, on this machine's kernel where that has nbd and we are
 * root, else in a User-Mode-Linux guest, in which this file runs itself again. Exit status 0: every check held.
 * The store is the one of the environment (S3BLOCK_STORE, S3BLOCK_S3_…, AWS_…), below a prefix of its own; without
 * one a directory. It leaves nothing behind but, where it fails, the logs of the processes, whose place it prints.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { machineHasNbd, runInGuest } from "../kernel/guest.ts";
import { openDemoStore, removeStoredKeys, s3Endpoints, storeEnvironment, storeUrlOfRun } from "./demo-store.ts";
import { Laboratory } from "./laboratory.ts";
import { serveGuest } from "./relay.ts";
import { formatSeconds } from "./report.ts";
import { walk } from "./walk.ts";

const guestMemoryMib = 3072;
const guestTimeoutMs = 15 * 60_000;
const interruptedStatus = 130;
/** An interrupted walk ends at its next check; a step that hangs is not waited for. */
const lastStepMs = 30_000;
/** Set in the guest: the run that it is a part of. */
const outerRunVariable = "S3BLOCK_DEMO_RUN";

interface Run {
  /** Undefined: a directory that comes and goes with the run. */
  storeUrl: string | undefined;
  logDirectory: string;
  /** Where connections to the S3 endpoints are carried from the guest to the machine. */
  relayDirectory: string;
}

/** The walk on the kernel under us. Everything is taken away again before it returns. */
async function runHere(run: Run, interrupted: Promise<never>): Promise<number> {
  const laboratory = await Laboratory.make(run);
  const walking = walk(laboratory);
  let status = 0;
  try {
    await Promise.race([walking, interrupted]);
  } catch (error) {
    status = statusOf(error);
    say(`\n${describe(error)}\n==> taking everything away`);
    laboratory.interrupt();
    // Two that start and stop the same processes would be in each other's way.
    await Promise.race([walking.catch(() => {}), sleep(lastStepMs)]);
  }
  try {
    await laboratory.close();
  } catch (error) {
    say(describe(error));
    return status === 0 ? 1 : status;
  }
  return status;
}

/** The same in a guest, whose kernel has nbd. It has no network: the way to an S3 endpoint is carried (relay.ts). */
async function runThere(run: Run, interrupted: Promise<never>): Promise<number> {
  say("==> this machine's kernel has no nbd, or we are not root: booting a User-Mode-Linux guest");
  const relay = serveGuest(run.relayDirectory, s3Endpoints());
  const brokenRelay = relay.ended.then(() => Promise.reject(new Error("the way to the store ended")));
  const bootedMs = performance.now();
  let isBooted = false;
  const onOutput = (text: string): void => {
    if (!isBooted) say(`==> the guest is up (${formatSeconds((performance.now() - bootedMs) / 1000)})`);
    isBooted = true;
    process.stdout.write(text);
  };
  const guest = runInGuest({
    command: [process.execPath, fileURLToPath(import.meta.url)],
    environment: { ...storeEnvironment(), [outerRunVariable]: JSON.stringify(run) },
    memoryMib: guestMemoryMib,
    timeoutMs: guestTimeoutMs,
    shares: [run.logDirectory, run.relayDirectory],
    onOutput,
  });
  let status = 1;
  try {
    const result = await Promise.race([guest, brokenRelay, interrupted]);
    status = result.status;
    if (status !== 0 && result.kernelLog !== "") say(`the guest's kernel log:\n${result.kernelLog}`);
  } catch (error) {
    status = statusOf(error);
    say(`\n${describe(error)}`);
  }
  relay.stop();
  // A guest that was ended by force could not do it, and nothing of it reaches the store any more.
  if (status !== 0 && run.storeUrl?.startsWith("s3:") === true) await clearStore(run.storeUrl);
  return status;
}

async function clearStore(storeUrl: string): Promise<void> {
  const store = openDemoStore(storeUrl);
  await removeStoredKeys(store).catch((error: unknown) => say(`objects are left at ${storeUrl}: ${describe(error)}`));
  await store.close();
}

class Interruption extends Error {}

function statusOf(error: unknown): number {
  return error instanceof Interruption ? interruptedStatus : 1;
}

/** Rejects at the first signal that asks us to end; further ones are ignored while everything is taken away. */
function interruption(): Promise<never> {
  return new Promise<never>((_, reject) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      process.on(signal, () => reject(new Interruption(`ended by ${signal}`)));
    }
  });
}

/** In the guest: the process that carries connections to the endpoints. Resolves once it listens. */
async function startRelay(directory: string): Promise<ChildProcess | undefined> {
  const endpoints = s3Endpoints();
  if (endpoints.length === 0) return undefined;
  const program = fileURLToPath(new URL("relay.ts", import.meta.url));
  const child = spawn(process.execPath, [program, directory, ...endpoints], { stdio: ["ignore", "pipe", "inherit"] });
  const [first] = (await Promise.race([once(child.stdout, "data"), once(child, "exit")])) as [unknown];
  if (!Buffer.isBuffer(first)) throw new Error("the way to the store could not be made");
  return child;
}

/** Inside the guest of another run. */
async function mainInGuest(run: Run, interrupted: Promise<never>): Promise<number> {
  const relay = await startRelay(run.relayDirectory);
  const status = await runHere(run, interrupted);
  relay?.kill();
  return status;
}

async function main(): Promise<number> {
  const startedMs = performance.now();
  const interrupted = interruption();
  interrupted.catch(() => {});
  const outer = process.env[outerRunVariable];
  if (outer !== undefined) return mainInGuest(JSON.parse(outer) as Run, interrupted);
  const [logDirectory, relayDirectory] = ["logs", "relay"].map((name) => temporaryDirectory(name));
  let status = 1;
  try {
    const run = { storeUrl: storeUrlOfRun(), logDirectory, relayDirectory };
    status = await (machineHasNbd() ? runHere(run, interrupted) : runThere(run, interrupted));
  } catch (error) {
    say(describe(error));
  }
  rmSync(relayDirectory, { recursive: true, force: true });
  if (status === 0 || status === interruptedStatus) rmSync(logDirectory, { recursive: true, force: true });
  const seconds = formatSeconds((performance.now() - startedMs) / 1000);
  if (status === 0) say(`\nRESULT: passed: every check held, nothing was left behind (${seconds})`);
  else if (status === interruptedStatus) say(`\nRESULT: interrupted (${seconds})`);
  else say(`\nRESULT: FAILED (${seconds}); the logs of the processes are in ${logDirectory}`);
  return status;
}

function temporaryDirectory(name: string): string {
  return mkdtempSync(join(tmpdir(), `s3block-demo-${name}-`));
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

process.exit(await main());
