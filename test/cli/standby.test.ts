/**
 * A server with a standby as processes, on a directory store and with clients of libnbd: what the death of each of them
 * comes to. supervisor.test.ts has the cases that need many deaths.
 */
import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { Playground, run, s3block, ServerProcess } from "./program.ts";

const imageBytes = 8 * 1024 * 1024;
let ground: Playground;

before(async () => {
  ground = await Playground.make();
  await writeFile(ground.path("image"), new SeededRandom(11).bytes(imageBytes));
});

after(() => ground.remove());

/** A supervised server whose standby is there, with a volume that holds the image. */
async function serveImage(volumeId: string): Promise<{ server: ServerProcess; standbyPid: number }> {
  const made = await ground.volume("create", volumeId, String(imageBytes), "--durability=local");
  assert.equal(made.code, 0, made.stderr);
  const lasting = ["--export-idle-ms=3600000", "--upload-interval-ms=3600000", "--metrics-address=127.0.0.1:0"];
  const flags = [...ground.serverFlags(), ...lasting, "--standby"];
  const server = await ground.serve(flags.filter((flag) => flag !== "--export-idle-ms=50"));
  const copied = await run("nbdcopy", ["--flush", ground.path("image"), ground.uri(volumeId)]);
  assert.equal(copied.code, 0, copied.stderr);
  const { standbyPid } = await server.logged("a standby is there");
  return { server, standbyPid: Number(standbyPid) };
}

async function mustHoldImage(volumeId: string): Promise<void> {
  const copied = await run("nbdcopy", [ground.uri(volumeId), ground.path("copy")]);
  assert.equal(copied.code, 0, copied.stderr);
  assert.ok((await ground.read("copy")).equals(await ground.read("image")));
}

/** False also where it has ended and its parent, which is not ours, has not asked how. */
async function lives(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "State: Z");
  return !/^State:\s+Z/m.test(status);
}

/** All lines that one of the processes has written. */
function messagesOf(server: ServerProcess, pid: number): unknown[] {
  return server.lines.filter((line) => line.pid === pid).map(({ message }) => message);
}

test("a standby goes on after SIGKILL with all that was flushed, and is counted; SIGTERM ends all in order", async () => {
  const { server, standbyPid } = await serveImage("taken-over");
  const serving = server.servingPid;
  assert.deepEqual(messagesOf(server, standbyPid), []);
  process.kill(serving, "SIGKILL");
  await server.logged("the server is ready", standbyPid);
  assert.equal(server.servingPid, standbyPid);
  const death = await server.logged("the serving process has ended: its standby goes on");
  assert.deepEqual([death.cause, death.endedPid, death.nextPid], ["SIGKILL", serving, standbyPid]);
  await mustHoldImage("taken-over");
  const { address } = await server.logged("metrics are served", standbyPid);
  const text = await (await fetch(`http://${String(address)}/metrics`)).text();
  assert.match(text, /^s3block_server_takeovers_total 1$/m);
  assert.equal(messagesOf(server, standbyPid).includes("store keeps conditional writes"), false);

  // Another crash, before the next standby can be there.
  process.kill(standbyPid, "SIGKILL");
  await server.logged("the serving process has ended: another one is started");
  while (server.servingPid === standbyPid) await sleep(10);
  const third = server.servingPid;
  await server.logged("the server is ready", third);
  await mustHoldImage("taken-over");

  const standbys = (): Record<string, unknown>[] => server.lines.filter((line) => line.standbyPid !== undefined);
  while (standbys().length < 2) await sleep(10);
  const lastStandby = Number(standbys()[1].standbyPid);
  assert.equal(await server.stop("SIGTERM"), 0);
  assert.deepEqual([await lives(third), await lives(lastStandby)], [false, false]);
  assert.ok(messagesOf(server, third).includes("the server has stopped"));
  assert.deepEqual(messagesOf(server, lastStandby), []);
  assert.deepEqual(await readdir(ground.path("state", "journal")), [], "what was exported is in the store");
});

test("without its supervisor a server ends in order and its standby at once; the next server has the directory", async () => {
  const { server, standbyPid } = await serveImage("orphaned");
  const serving = server.servingPid;
  // Resolves once all have closed their output.
  assert.equal(await server.stop("SIGKILL"), null);
  assert.deepEqual([await lives(serving), await lives(standbyPid)], [false, false]);
  assert.ok(messagesOf(server, serving).includes("the server has stopped"));
  assert.equal(messagesOf(server, standbyPid).includes("the standby goes on"), false);
  const next = await ground.serve();
  await mustHoldImage("orphaned");
  assert.equal(await next.stop("SIGTERM"), 0);
});

test("SIGTERM to the serving process alone is a hand-over, to the standby or to whoever else waits, never to two", async () => {
  const { server, standbyPid } = await serveImage("contended");
  const other = new ServerProcess(ground.serverFlags());
  await other.logged("another server uses the state directory: waiting for its end");
  process.kill(server.servingPid, "SIGTERM");
  const first = await Promise.race([
    server.logged("the server is ready", standbyPid).then(() => server),
    other.logged("the server is ready").then(() => other),
  ]);
  const second = first === server ? other : server;
  assert.equal(
    second.lines.filter(({ message }) => message === "the server is ready").length,
    second === server ? 1 : 0,
  );
  await mustHoldImage("contended");
  assert.equal(await first.stop("SIGTERM"), 0);
  if (second === other) await other.logged("the server is ready");
  else await server.logged("the server is ready", standbyPid);
  await mustHoldImage("contended");
  assert.equal(await second.stop("SIGTERM"), 0);
});

test("what is wrong at the first start is told in one line, with the exit code of a server without a standby", async () => {
  const state = ["--state-dir", ground.path("wrong"), "--run-dir", ground.path("wrong-run")];
  const listen = ["--listen=tcp://127.0.0.1:0", "--store", ground.storeUrl];
  const refused = await s3block(["server", "--standby", ...state, ...listen]);
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /^s3block: [^\n]*without tls.*--insecure[^\n]*\n$/);
  const { code, stderr } = await s3block(["server", "--standby=false", ...state, ...listen]);
  assert.deepEqual([code, stderr], [2, refused.stderr]);
});
