/**
 * The server as a process on a directory store, with libnbd's and fio's clients: data survives kill, restart and the
 * loss of the node's disk; mistakes end in one clear line.
 */
import assert from "node:assert/strict";
import { readdir, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { after, before, test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { ControlClient } from "../../src/attachment/control-client.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";
import { attachOptions } from "../attachment/fakes.ts";
import { Playground, run, s3block, ServerProcess } from "./program.ts";

const imageBytes = 24 * 1024 * 1024;
let ground: Playground;

before(async () => {
  ground = await Playground.make();
  await writeFile(ground.path("image"), new SeededRandom(7).bytes(imageBytes));
});

after(async () => {
  await ground.remove();
});

async function makeVolume(id: string, ...flags: string[]): Promise<void> {
  const made = await ground.volume("create", id, String(imageBytes), ...flags);
  assert.equal(made.code, 0, made.stderr);
}

async function copyIn(id: string): Promise<void> {
  const copied = await run("nbdcopy", ["--flush", ground.path("image"), ground.uri(id)]);
  assert.equal(copied.code, 0, copied.stderr);
}

async function mustHoldImage(id: string): Promise<void> {
  const copied = await run("nbdcopy", [ground.uri(id), ground.path("copy")]);
  assert.equal(copied.code, 0, copied.stderr);
  assert.ok((await ground.read("copy")).equals(await ground.read("image")), "what comes back is what was written");
}

for (const durability of ["s3", "local"]) {
  test(`what was flushed is there after SIGKILL and restart (durability ${durability})`, async () => {
    const id = `killed-${durability}`;
    await makeVolume(id, `--durability=${durability}`);
    const flags = [...ground.serverFlags(), "--export-idle-ms=3600000", "--upload-interval-ms=3600000"];
    const server = await ground.serve(flags.filter((flag) => flag !== "--export-idle-ms=50"));
    await copyIn(id);
    assert.equal(await server.stop("SIGKILL"), null);
    const next = await ground.serve();
    await mustHoldImage(id);
    assert.equal(await next.stop("SIGTERM"), 0);
  });
}

test("SIGTERM uploads what is exported and exits 0; another node without local state reads it all", async () => {
  await makeVolume("moved", "--durability=local");
  const flags = [...ground.serverFlags(), "--upload-interval-ms=3600000"];
  const server = await ground.serve(flags);
  await copyIn("moved");
  assert.equal(await server.stop("SIGTERM"), 0);
  assert.deepEqual(await readdir(ground.path("state", "journal")), []);
  const other = await ground.serve(ground.serverFlags("state-of-another-node"));
  await mustHoldImage("moved");
  assert.equal(await other.stop("SIGTERM"), 0);
});

test("a kill in the midst of writes loses nothing that was verified before, and the volume opens again", async () => {
  await makeVolume("busy");
  const server = await ground.serve();
  await copyIn("busy");
  const writes = [
    "--name=w",
    "--ioengine=nbd",
    `--uri=${ground.uri("busy")}`,
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=16",
  ];
  const load = run("fio", [
    ...writes,
    "--size=8m",
    "--offset=16m",
    "--time_based",
    "--runtime=60",
    "--output-format=terse",
  ]);
  await server.logged("opened the volume");
  await new Promise((resolve) => setTimeout(resolve, 500));
  await server.stop("SIGKILL");
  assert.notEqual((await load).code, 0);
  const next = await ground.serve();
  const copied = await run("nbdcopy", [ground.uri("busy"), ground.path("copy")]);
  assert.equal(copied.code, 0, copied.stderr);
  const kept = 16 * 1024 * 1024;
  assert.ok((await ground.read("copy")).subarray(0, kept).equals((await ground.read("image")).subarray(0, kept)));
  assert.equal(await next.stop("SIGTERM"), 0);
});

test("fio verifies its own writes over several connections", async () => {
  await makeVolume("verified");
  const server = await ground.serve();
  const args = [
    "--name=v",
    "--ioengine=nbd",
    `--uri=${ground.uri("verified")}`,
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=32",
  ];
  const result = await run("fio", [
    ...args,
    "--size=8m",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--fsync=64",
  ]);
  assert.equal(result.code, 0, result.stdout + result.stderr);
  const info = await run("nbdinfo", ["--list", `nbd+unix:///?socket=${ground.socketPath}`]);
  assert.match(info.stdout, /export="verified"/);
  assert.equal(await server.stop("SIGTERM"), 0);
});

test("where the kernel has no nbd, an attach says what is missing and everything else works", async (context) => {
  const server = await ground.serve();
  const lacking = server.lines.find((line) => line.message === "no volume can be attached to this machine's kernel");
  if (lacking === undefined) {
    context.diagnostic("this kernel has nbd");
  } else {
    await makeVolume("unattached");
    const client = new ControlClient({ socketPath: ground.controlSocket });
    const options = attachOptions({ volumeId: mustVolumeId("unattached"), publication: 0 });
    await assert.rejects(client.attach(options), /modprobe nbd|nbd driver/);
    assert.deepEqual(await client.listAttachments(), []);
    client.close();
  }
  assert.equal(await server.stop("SIGTERM"), 0);
});

test("an attach under a publication that is not in force is refused, naming who has it", async (context) => {
  await makeVolume("published");
  const server = await ground.serve();
  const client = new ControlClient({ socketPath: ground.controlSocket });
  const attempt = client.attach(attachOptions({ volumeId: mustVolumeId("published"), publication: 3 }));
  await assert.rejects(attempt, /not published to this node any more.*publishedTo=nobody/);
  client.close();
  context.diagnostic("checked before the kernel is asked");
  assert.equal(await server.stop("SIGTERM"), 0);
});

test("metrics and health are served where an address is given", async () => {
  const server = await ground.serve([...ground.serverFlags(), "--metrics-address=127.0.0.1:0"]);
  const { address } = await server.logged("metrics are served");
  await makeVolume("measured");
  await copyIn("measured");
  const text = await (await fetch(`http://${String(address)}/metrics`)).text();
  assert.match(text, /^s3block_store_requests_total\{kind="put",outcome="ok"\} \d+$/m);
  assert.match(text, /^process_resident_memory_bytes \d/m);
  assert.equal((await fetch(`http://${String(address)}/healthz`)).status, 200);
  assert.equal(await server.stop("SIGTERM"), 0);
});

test("two servers never share a state directory", async () => {
  const first = await ground.serve();
  const flags = [...ground.serverFlags(), "--shutdown-seconds=1"];
  const second = new ServerProcess(flags);
  await second.logged("another server uses the state directory: waiting for its end");
  assert.equal(await first.stop("SIGTERM"), 0);
  await second.logged("the server is ready");
  assert.equal(await second.stop("SIGTERM"), 0);
});

test("every line of the log is JSON with process and node", async () => {
  const server = await ground.serve();
  await server.stop("SIGTERM");
  for (const line of server.lines) {
    assert.equal(line.process, "server");
    assert.equal(line.nodeId, "node-a");
    assert.match(String(line.level), /^(debug|info|warn|error)$/);
  }
});

async function unusedAddress(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return `http://127.0.0.1:${port}`;
}

test("mistakes end in one line that says what to do, and exit code 1 or 2", async () => {
  const store = ["--store", ground.storeUrl];
  const state = ["--state-dir", ground.path("wrong"), "--run-dir", ground.path("wrong-run")];
  const s3 = ["--store=s3://bucket", `--s3-endpoint=${await unusedAddress()}`];
  const keys = { AWS_ACCESS_KEY_ID: "canary-key-1", AWS_SECRET_ACCESS_KEY: "canary-secret" };
  const cases: [string[], number, RegExp][] = [
    [["serve"], 2, /unknown command "serve": see s3block --help/],
    [["server", "--no"], 2, /unknown flag --no: see s3block server --help/],
    [["server"], 2, /give --store or set S3BLOCK_STORE/],
    [["server", "--store=ftp://x", ...state], 2, /s3:\/\/bucket/],
    [["server", ...store, "--listen=tcp://127.0.0.1:0"], 2, /without tls.*--insecure/],
    [["server", ...store, "extra"], 2, /unexpected argument "extra"/],
    [["volume", ...store], 2, /volume create <id> <size>/],
    [["volume", "create", "v", "0", ...store], 2, /between 1 MiB and 64 TiB/],
    [["volume", "create", "v", "65TiB", ...store], 2, /between 1 MiB and 64 TiB/],
    [["volume", "create", "v", "-1", ...store], 2, /unknown flag -1/],
    [["volume", "create", "../v", "1GiB", ...store], 2, /volume id must be/],
    [["volume", "show", "nothing", ...store], 1, /no such volume volumeId=nothing/],
    [["volume", "create", "v", "1GiB", ...s3], 1, /cannot be reached: check --s3-endpoint/],
  ];
  for (const [args, code, pattern] of cases) {
    const result = await s3block(args, keys);
    assert.deepEqual([result.code, result.stdout], [code, ""], `${args.join(" ")}: ${result.stderr}`);
    assert.match(result.stderr, pattern);
    assert.match(result.stderr, /^s3block: [^\n]+\n$/);
    assert.doesNotMatch(result.stderr, /canary/);
  }
});

test("volumes are made, listed, shown and deleted by the command line", async () => {
  await makeVolume("listed");
  const shown = await ground.volume("show", "listed");
  assert.equal((JSON.parse(shown.stdout) as { sizeBytes: number }).sizeBytes, imageBytes);
  assert.match((await ground.volume("list")).stdout, /"id":"listed"/);
  assert.equal((await ground.volume("delete", "listed")).code, 0);
  assert.equal((await ground.volume("delete", "listed")).code, 0);
  assert.doesNotMatch((await ground.volume("list")).stdout, /"id":"listed"/);
  assert.match((await s3block(["version"])).stdout, /^\d+\.\d+\.\d+\n$/);
});
