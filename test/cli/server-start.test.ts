/**
 * What makes a restarted server quick, as far as it can be asserted without a clock: what its start does not load, that
 * compiled code is found again, and what it need not wait for. test/bench/restart.ts measures.
 */
import assert from "node:assert/strict";
import { cp, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { OpenRequest, ServedVolume, VolumeHost } from "../../src/attachment/volume-host.ts";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { probedHost } from "../../src/cli/probed-host.ts";
import { TrustedStore } from "../../src/cli/trusted-store.ts";
import { Redactor } from "../../src/observability/redaction.ts";
import { attachOptions } from "../attachment/fakes.ts";
import { Playground, type ServerProcess } from "./program.ts";

const commandLine = resolve(import.meta.dirname, "../../src/cli");
const compileCacheLog = { NODE_DEBUG_NATIVE: "COMPILE_CACHE" };
let ground: Playground;

before(async () => {
  ground = await Playground.make();
});

after(() => ground.remove());

/** Packages that `entry` and what it imports at its start (not by import()) load, each with the file that does. */
async function packagesOf(entry: string): Promise<string[]> {
  const packages: string[] = [];
  const seen = new Set<string>();
  const visit = async (file: string): Promise<void> => {
    if (seen.has(file)) return;
    seen.add(file);
    const text = await readFile(file, "utf8");
    const imports = /^(?:import|export) (?!type\b)(?:[^"';]*? from )?"([^"]+)";/gm;
    for (const [, specifier] of text.matchAll(imports)) {
      if (specifier.startsWith(".")) await visit(resolve(dirname(file), specifier));
      else if (!specifier.startsWith("node:")) packages.push(`${specifier} by ${file}`);
    }
  };
  await visit(join(commandLine, entry));
  assert.ok(entry === "main.ts" || seen.size > 20, `only ${seen.size} files were followed from ${entry}`);
  return packages;
}

test("no package is loaded before attached volumes are resumed, in the main thread or a volume's", async () => {
  for (const entry of ["main.ts", "server.ts", "server-worker.ts"]) assert.deepEqual(await packagesOf(entry), []);
  assert.match((await packagesOf("server-services.ts")).join(), /@grpc\/grpc-js by .*control-server\.ts/);
});

/** What threads have said of checksums, once `count` of them have: the last thing that a thread does at its start. */
async function checksums(server: ServerProcess, count: number): Promise<string[]> {
  for (;;) {
    const lines = server.lines.map(({ message, thread }) => `${String(message)} ${String(thread)}`);
    const told = lines.filter((line) => line.startsWith("checksums"));
    if (told.length >= count) return told;
    await sleep(20);
  }
}

test(
  "every thread that serves volumes computes checksums by the processor's instructions, a standby's before its turn",
  { timeout: 60_000 },
  async () => {
    const flags = [...ground.serverFlags("quick-state"), "--log-level=debug", "--standby=true"];
    const server = await ground.serve(flags);
    await server.logged("a standby is there");
    const quick = [0, 1].map((thread) => `checksums by the processor's instructions ${thread}`);
    assert.deepEqual((await checksums(server, 4)).toSorted(), [...quick, ...quick].toSorted());
    assert.equal(await server.stop("SIGTERM"), 0);
  },
);

/** Names of the modules whose compiled code was found and taken, by what Node itself tells. */
function accepted(stderr: string): Set<string> {
  const lines = stderr.matchAll(/V8 code cache for \S+ \S*?\/src\/(\S+\.ts) was accepted/g);
  return new Set([...lines].map(([, name]) => name));
}

test("compiled code of both kinds of thread is found again, and damage to it is harmless", async () => {
  const flags = [...ground.serverFlags("compiled-state"), "--log-level=debug"];
  const first = await ground.serve(flags, compileCacheLog);
  await checksums(first, 2);
  assert.equal(await first.stop("SIGKILL"), null);
  assert.equal(accepted(first.stderr).has("cli/server.ts"), false);
  const cache = ground.path("compiled-state", "compiled");
  const kept = ground.path("compiled-kept");
  await cp(cache, kept, { recursive: true });
  let missing = ["cli/server.ts", "cli/server-worker.ts", "volume/engine.ts", "cli/server-services.ts"];
  // Threads write these lines in pieces, into each other: what one start has not shown, another one with the same files may.
  for (let starts = 0; starts < 5 && missing.length > 0; starts += 1) {
    await rm(cache, { recursive: true });
    await cp(kept, cache, { recursive: true });
    const next = await ground.serve(flags, compileCacheLog);
    assert.equal(await next.stop("SIGTERM"), 0);
    const found = accepted(next.stderr);
    missing = missing.filter((name) => !found.has(name));
  }
  assert.deepEqual(missing, []);

  const files = (await readdir(cache, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  assert.ok(files.length > 100);
  const random = new SeededRandom(5);
  for (const [index, { parentPath, name }] of files.entries()) {
    const path = join(parentPath, name);
    if (index % 3 === 0) await truncate(path, random.below(64));
    else if (index % 3 === 1) await writeFile(path, random.bytes(4096));
    else await damage(path, random);
  }
  const third = await ground.serve(flags, compileCacheLog);
  assert.equal(await third.stop("SIGTERM"), 0);
  // What one thread has compiled anew and kept, the other one may find.
  const taken = accepted(third.stderr);
  assert.deepEqual([taken.has("cli/server.ts"), taken.has("cli/server-worker.ts")], [false, false]);
});

/** Changes one byte behind the header. */
async function damage(path: string, random: SeededRandom): Promise<void> {
  const bytes = await readFile(path);
  bytes[20 + random.below(bytes.length - 20)] ^= 0x55;
  await writeFile(path, bytes);
}

test("a server starts where compiled code can be kept nowhere", async () => {
  const taken = ground.path("taken");
  await writeFile(taken, "a file where the directory should be");
  const server = await ground.serve(ground.serverFlags("uncompiled-state"), { NODE_COMPILE_CACHE: taken });
  assert.equal(await server.stop("SIGTERM"), 0);
});

test("a store's good word is kept for that store alone, until it is taken back", async (t) => {
  const stateDir = await mkdtemp(join(tmpdir(), "s3block-trust-"));
  t.after(() => rm(stateDir, { recursive: true }));
  const settings = { url: "s3://bucket/a", endpoints: ["http://one:9000"], region: "r" };
  const of = (changes: object): TrustedStore =>
    new TrustedStore({ stateDir, settings: { ...settings, ...changes }, log: nullLog });
  assert.equal(await of({}).isTrusted(), false);
  await of({}).trust();
  assert.equal(await of({}).isTrusted(), true);
  for (const other of [
    { url: "s3://bucket/b" },
    { endpoints: ["http://two:9000"] },
    { region: "s" },
    { pathStyle: false },
  ]) {
    assert.equal(await of(other).isTrusted(), false, JSON.stringify(other));
  }
  await truncate(join(stateDir, "trusted-store"), 20);
  assert.equal(await of({}).isTrusted(), false);
  await of({}).trust();
  assert.deepEqual(await readdir(stateDir), ["trusted-store"]);
  await of({}).distrust();
  assert.equal(await of({}).isTrusted(), false);
  await new TrustedStore({ stateDir: join(stateDir, "missing"), settings, log: nullLog }).trust();
});

/** What was opened, and what opening it has come to. */
function hostUnder(probed: Promise<void>, resumable: Promise<void>) {
  const opened: string[] = [];
  const served: string[] = [];
  const inner: VolumeHost = {
    open: async ({ mode }) => {
      opened.push(mode);
      return {} as ServedVolume;
    },
    openBroken: async () => ({}) as ServedVolume,
  };
  const host = probedHost({ inner, redactor: new Redactor(), probed, resumable });
  const open = (mode: OpenRequest["mode"]): void => {
    void host.open({ ...attachOptions(), mode, clientWaits: false }).then(() => served.push(mode));
  };
  return { open, opened, served };
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await Promise.resolve();
}

test("a volume is taken after the probe alone; a resumed one is opened at once, and served when the store is trusted", async () => {
  for (const isTrusted of [true, false]) {
    const probe = Promise.withResolvers<void>();
    const { open, opened, served } = hostUnder(probe.promise, isTrusted ? Promise.resolve() : probe.promise);
    open("take");
    open("resume");
    await turns();
    assert.deepEqual(opened, ["resume"]);
    assert.deepEqual(served, isTrusted ? ["resume"] : []);
    probe.resolve();
    await turns();
    assert.deepEqual(opened, ["resume", "take"]);
    assert.deepEqual(served.toSorted(), ["resume", "take"]);
  }
});
