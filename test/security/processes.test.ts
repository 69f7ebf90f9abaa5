/**
 * Controller, server and node as the processes of a cluster, under the loosest umask and with keys that are known: what
 * they make is their owner's alone, no key turns up in anything they say or keep, and none of them can be looked into.
 * The S3 server is in memory and repeats whatever it is sent in its errors (memory-s3.ts).
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import type { ServiceError } from "@grpc/grpc-js";
import type { ServiceName } from "../../src/csi/grpc-server.ts";
import { run } from "../cli/program.ts";
import { CsiClient, mountCapability } from "../csi/csi-client.ts";
import { DriverProcess } from "../e2e/process.ts";
import type { CommandName } from "../e2e/process.ts";
import { MemoryS3, misbehaving } from "./memory-s3.ts";

/** Keys that occur nowhere else. The secrets have characters that URLs, JSON and XML write in another way. */
const own = { id: "CANARYOWNID7Q2", secret: "canary-own/secret+&<k3v9x==", token: "canary-own-token/9f+7&c2d1==" };
const given = { id: "CANARYGIVENID4Z", secret: "canary-given/secret+&<p8w5==", token: "canary-given-token/1a+5&e8==" };
const malformed = "canary-malformed-secret-6b2e\n";
const canaries = [...Object.values(own), ...Object.values(given), malformed.trim()];
/** What is found of a canary however it is written. */
const needles = [
  ...canaries,
  ...canaries.flatMap((text) => [encodeURIComponent(text), JSON.stringify(text).slice(1, -1)]),
];

const s3 = new MemoryS3();
const answers: string[] = [];
let directory = "";
let formerDirectory = "";
let formerUmask = 0;
let processes: Readonly<Record<CommandName, DriverProcess>>;
let controller: CsiClient;
let node: CsiClient;

const path = (...names: string[]): string => join(directory, ...names);

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "s3block-secrets-"));
  formerDirectory = process.cwd();
  formerUmask = process.umask(0);
  for (const name of ["kubelet", "state", "run", "cores"]) {
    await mkdir(path(name));
    // As the kubelet makes the directories of a hostPath.
    await chmod(path(name), 0o755);
  }
  await writeFile(
    path("credentials"),
    `[default]\naws_access_key_id = ${own.id}\naws_secret_access_key = ${own.secret}\naws_session_token = ${own.token}\n`,
    { mode: 0o600 },
  );
  process.chdir(path("cores"));
  const endpoint = await s3.start();
  processes = makeProcesses(endpoint);
  for (const name of ["server", "controller", "node"] as const) await processes[name].start();
  controller = new CsiClient(path("controller", "csi.sock"));
  node = new CsiClient(path("node", "csi.sock"));
});

after(async () => {
  process.umask(formerUmask);
  process.chdir(formerDirectory);
  controller.close();
  node.close();
  for (const name of ["node", "controller", "server"] as const) await processes[name].stop("SIGKILL");
  await s3.stop();
  await rm(directory, { recursive: true, force: true });
});

function makeProcesses(endpoint: string): Readonly<Record<CommandName, DriverProcess>> {
  const common = [
    "--store=s3://own-bucket",
    `--s3-endpoint=${endpoint}`,
    "--log-level=debug",
    "--metrics-address=127.0.0.1:0",
  ];
  const byFile = [...common, `--s3-credentials-file=${path("credentials")}`];
  const control = `--control-socket=${path("run", "control.sock")}`;
  const serverFlags = [
    ...common,
    control,
    `--state-dir=${path("state")}`,
    `--run-dir=${path("run")}`,
    `--listen=unix:${path("nbd", "nbd.sock")}`,
    "--node-id=a-node",
    "--threads=1",
    "--cache-size=64MiB",
    "--journal-size=128MiB",
    "--export-idle-ms=3600000",
  ];
  const variables = { AWS_ACCESS_KEY_ID: own.id, AWS_SECRET_ACCESS_KEY: own.secret, AWS_SESSION_TOKEN: own.token };
  const nodeFlags = [control, `--csi-socket=${path("node", "csi.sock")}`, `--kubelet-dir=${path("kubelet")}`];
  return {
    server: new DriverProcess("server", serverFlags, variables),
    controller: new DriverProcess("controller", [...byFile, `--csi-socket=${path("controller", "csi.sock")}`]),
    node: new DriverProcess("node", [...byFile, ...nodeFlags, "--node-id=a-node"]),
  };
}

/** The response, or undefined where the call fails; keeps all that the caller is told. */
async function call<T>(service: ServiceName, method: string, request: object): Promise<T | undefined> {
  try {
    const response = await (service === "Node" ? node : controller).call<T>(service, method, request);
    answers.push(JSON.stringify(response));
    return response;
  } catch (error) {
    const { message, details, metadata, stack } = error as ServiceError;
    answers.push(JSON.stringify([message, details, metadata.toJSON(), stack]));
    return undefined;
  }
}

interface Created {
  volume: { volumeId: string };
}

/** The life of a volume with these keys, as far as it gets. */
async function live(name: string, parameters: object, secrets: object): Promise<void> {
  const volumeCapability = mountCapability;
  const request = { name, volumeCapabilities: [volumeCapability], parameters, secrets };
  const created = await call<Created>("Controller", "createVolume", request);
  const volumeId = created?.volume.volumeId ?? `vol-${"0".repeat(32)}`;
  const stagingTargetPath = path("kubelet", name);
  const target = { volumeId, targetPath: path("kubelet", `${name}-target`) };
  const publishing = { volumeId, nodeId: "a-node", volumeCapability, secrets };
  const published = await call<{ publishContext: object }>("Controller", "controllerPublishVolume", publishing);
  const publishContext = published?.publishContext ?? { publication: "1", readOnly: "false", durability: "s3" };
  const staging = { volumeId, stagingTargetPath, volumeCapability, publishContext, secrets };
  await call("Node", "nodeStageVolume", staging);
  await call("Node", "nodePublishVolume", { ...staging, ...target });
  await call("Node", "nodeUnpublishVolume", target);
  await call("Node", "nodeUnstageVolume", { volumeId, stagingTargetPath });
  await call("Controller", "validateVolumeCapabilities", { volumeId, volumeCapabilities: [volumeCapability], secrets });
  await call("Controller", "controllerUnpublishVolume", { volumeId, nodeId: "a-node", secrets });
  await call("Controller", "deleteVolume", { volumeId, secrets });
}

test("volumes live, and fail in every way, with keys of the process and of requests", async () => {
  const secrets = { accessKeyId: given.id, secretAccessKey: given.secret, sessionToken: given.token };
  await Promise.all([
    live("own", {}, {}),
    live("given", { bucket: "given-bucket" }, secrets),
    ...misbehaving.map((bucket) => live(bucket, { bucket }, secrets)),
    ...[
      { ...secrets, secretAccessKey: malformed },
      { ...secrets, accessKeyId: malformed },
      { accessKeyId: given.id },
      { secretAccessKey: given.secret },
      { sessionToken: given.token, password: malformed },
    ].map((wrong, index) => live(`malformed-${index}`, {}, wrong)),
  ]);
  assert.ok(s3.requests.some((request) => request.includes(given.id)));
  assert.ok(s3.requests.some((request) => request.includes(own.id)));
  assert.ok(s3.requests.some((request) => request.includes("/denied-bucket")));
  const created = await call<Created>("Controller", "createVolume", {
    name: "kept",
    volumeCapabilities: [mountCapability],
    capacityRange: { requiredBytes: String(8 * 1024 * 1024) },
  });
  await writeFile(path("image"), Buffer.alloc(4 * 1024 * 1024, 7));
  const socket = path("nbd", "nbd.sock");
  const uri = `nbd+unix:///${created?.volume.volumeId}?socket=${socket}`;
  const copied = await run("nbdcopy", ["--flush", path("image"), uri]);
  assert.equal(copied.code, 0, copied.stderr + processes.server.tail());
});

function mustNotHold(where: string, content: string | Buffer, sought: readonly string[] = needles): void {
  for (const needle of sought) assert.ok(!content.includes(needle), `${where} holds ${needle}`);
}

/** Everything below the directory. */
async function walk(from: string): Promise<{ path: string; mode: number; kind: "directory" | "file" | "socket" }[]> {
  const found: Awaited<ReturnType<typeof walk>> = [];
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const full = join(from, entry.name);
    const kind = entry.isDirectory() ? "directory" : entry.isSocket() ? "socket" : "file";
    found.push({ path: full, mode: (await lstat(full)).mode & 0o777, kind });
    if (kind === "directory") found.push(...(await walk(full)));
  }
  return found;
}

test("no key is in a log of any level, an answer, a metric, a command line, an object or a file", async () => {
  for (const { command, lines, stderr, pid } of Object.values(processes)) {
    assert.ok(lines.some(({ level }) => level === "debug") || command === "node");
    mustNotHold(`the log of ${command}`, lines.map((line) => JSON.stringify(line)).join("\n") + stderr);
    mustNotHold(`the command line of ${command}`, await readFile(`/proc/${pid}/cmdline`));
    if (command !== "server") mustNotHold(`the environment of ${command}`, await readFile(`/proc/${pid}/environ`));
    const served = lines.find(({ message }) => message === "metrics are served");
    const metrics = await fetch(`http://${String(served?.["address"])}/metrics`);
    assert.equal(metrics.status, 200);
    mustNotHold(`metrics of ${command}`, await metrics.text());
  }
  assert.ok(answers.length > 60);
  mustNotHold("an answer", answers.join("\n"));
  mustNotHold("an object", await s3.everything());
  const secrets = [own.secret, given.secret].flatMap((text) => [text, encodeURIComponent(text)]);
  mustNotHold("a request", s3.requests.join("\n"), secrets);
  let files = 0;
  for (const { path: file, kind } of await walk(directory)) {
    if (kind !== "file" || file === path("credentials")) continue;
    mustNotHold(file, await readFile(file));
    files += 1;
  }
  assert.ok(files > 3, `only ${files} files`);
});

test("what is made under the loosest umask can be opened by its owner alone", async () => {
  const made = ["kubelet", "state", "run", "cores", "credentials", "image"].map((name) => path(name));
  const found = (await walk(directory)).filter((entry) => !made.includes(entry.path));
  const sockets = found.filter(({ kind }) => kind === "socket").map((entry) => entry.path);
  assert.deepEqual(
    sockets.toSorted(),
    [path("run/control.sock"), path("nbd/nbd.sock"), path("controller/csi.sock"), path("node/csi.sock")].toSorted(),
  );
  assert.ok(
    found.some((entry) => entry.path.includes("/state/journal/")),
    "there is a journal",
  );
  assert.ok(
    found.some((entry) => entry.path.includes("/state/cache/")),
    "there is a cache",
  );
  for (const { path: file, mode, kind } of found) {
    const expected = kind === "directory" ? 0o700 : 0o600;
    assert.equal(mode & ~expected, 0, `${file} has mode ${mode.toString(8)}`);
  }
});

test("no process opens a debugger or leaves its memory in a core dump", async () => {
  for (const child of Object.values(processes)) {
    child.signal("SIGUSR1");
    await child.logged("a debugger was asked for and refused");
    assert.doesNotMatch(child.stderr, /Debugger listening/);
    await promisify(execFile)("prlimit", ["--pid", String(child.pid), "--core=1073741824"]);
    await child.stop("SIGABRT");
  }
  assert.deepEqual(await readdir(path("cores")), []);
});
