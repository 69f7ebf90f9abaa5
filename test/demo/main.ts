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
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { machineHasNbd, runInGuest } from "../kernel/guest.ts";
import { Laboratory } from "./laboratory.ts";
import { serveGuest } from "./relay.ts";
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

/** The same in a guest, whose kernel has nbd. It has no network: the way to an S3 endpoint is carried (relay.ts). */
async function runThere(logDirectory: string): Promise<number> {
  process.stdout.write("==> this machine's kernel has no nbd, or we are not root: booting a User-Mode-Linux guest\n");
  const endpoints = s3Endpoints();
  const shared = mkdtempSync(join(tmpdir(), "s3block-demo-relay-"));
  const remove = (): void => rmSync(shared, { recursive: true, force: true });
  process.once("exit", remove);
  const relay = serveGuest(shared, endpoints);
  const { status, kernelLog } = await Promise.race([
    relay.ended.then(() => Promise.reject(new Error("the way to the store ended"))),
    runInGuest({
      command: [process.execPath, fileURLToPath(import.meta.url)],
      environment: { ...storeEnvironment(endpoints), S3BLOCK_DEMO_LOGS: logDirectory, S3BLOCK_DEMO_RELAY: shared },
      memoryMib: guestMemoryMib,
      timeoutMs: guestTimeoutMs,
      shares: [logDirectory, shared],
      onOutput: (text) => process.stdout.write(text),
    }),
  ]);
  relay.stop();
  if (status !== 0 && kernelLog !== "") process.stdout.write(`the guest's kernel log:\n${kernelLog}`);
  return status;
}

/** URLs of the S3 service that the environment names; none where the store is a directory. */
function s3Endpoints(): string[] {
  const { S3BLOCK_STORE: store = "", S3BLOCK_S3_ENDPOINT: given = "", S3BLOCK_S3_REGION: region } = process.env;
  if (!store.startsWith("s3:")) return [];
  const endpoints = given.split(",").map((text) => text.trim());
  return given === "" ? [`https://s3.${region ?? "us-east-1"}.amazonaws.com`] : endpoints;
}

/** What the guest must know of the environment; names of endpoints are the only ones that lead anywhere there. */
function storeEnvironment(endpoints: readonly string[]): Record<string, string> {
  const entries = Object.entries(process.env).filter(([name]) => /^(HOME|AWS_.*|S3BLOCK_S(3_.*|TORE))$/.test(name));
  const found = Object.fromEntries(entries.map(([name, value]) => [name, value ?? ""]));
  if (endpoints.length === 0 || found["S3BLOCK_S3_ENDPOINT"] !== undefined) return found;
  return { ...found, S3BLOCK_S3_ENDPOINT: endpoints.join(","), S3BLOCK_S3_PATH_STYLE: "true" };
}

/** In the guest: the process that carries connections to the endpoints. Resolves once it listens. */
async function startRelay(shared: string): Promise<ChildProcess | undefined> {
  const endpoints = s3Endpoints();
  if (endpoints.length === 0) return undefined;
  const program = fileURLToPath(new URL("relay.ts", import.meta.url));
  const child = spawn(process.execPath, [program, shared, ...endpoints], { stdio: ["ignore", "pipe", "inherit"] });
  const [first] = (await Promise.race([once(child.stdout, "data"), once(child, "exit")])) as [unknown];
  if (!Buffer.isBuffer(first)) throw new Error("the way to the store could not be made");
  return child;
}

async function main(): Promise<number> {
  const given = process.env["S3BLOCK_DEMO_LOGS"];
  if (isGuest && given !== undefined) {
    const relay = await startRelay(process.env["S3BLOCK_DEMO_RELAY"] ?? "");
    try {
      return await runHere(given);
    } finally {
      relay?.kill();
    }
  }
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
