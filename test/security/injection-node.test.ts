/**
 * Whatever a caller of the node service writes into its strings, only command lines of a fixed form are run: programs of
 * the machine by absolute path, without a shell and without our environment, with paths below the kubelet's directory
 * where paths stand, and options that were written down beforehand where options stand. Targets are made one level deep
 * and removed by rmdir or unlink alone. Through the real RPC layer, on a machine that only records (recording-host.ts).
 */
import assert from "node:assert/strict";
import { lstat, mkdir, mkdtemp, readdir, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import fc from "fast-check";
import type { Attachment, DataPlane } from "../../src/attachment/data-plane.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { startNode } from "../../src/csi/plugin.ts";
import type { GrpcServer } from "../../src/csi/grpc-server.ts";
import { CsiClient } from "../csi/csi-client.ts";
import { RecordingLog } from "../csi/recording-log.ts";
import { hostileTexts, hostileValue } from "./hostile.ts";
import { DEVICE, RecordingHost } from "./recording-host.ts";
import type { StartedProgram } from "./recording-host.ts";

const sizeBytes = 1024 ** 3;
const volumeId = `vol-${"a".repeat(32)}`;

let directory = "";
let kubelet = "";
let host: RecordingHost;
let server: GrpcServer;
let client: CsiClient;
let devicePath = DEVICE;

const attachment = (): Attachment => ({
  volumeId: volumeId as Attachment["volumeId"],
  state: "attached",
  devicePath,
  sizeBytes,
  blockSizeBytes: 4096,
  readOnly: false,
  neverWritten: true,
  epoch: 1,
  dirtyBytes: 0,
  behindSeconds: 0,
  failure: "",
});

const dataPlane: DataPlane = {
  attach: async () => attachment(),
  detach: async () => {},
  getAttachment: async () => attachment(),
  listAttachments: async () => [attachment()],
  flush: async () => {},
};

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "s3block-injection-"));
  kubelet = join(await realpath(directory), "kubelet");
  await mkdir(join(kubelet, "pods"), { recursive: true });
  await mkdir(`${kubelet}x`);
  await mkdir(join(directory, "outside", "pods"), { recursive: true });
  await writeFile(join(directory, "outside", "keep"), "a user's");
  await symlink(join(directory, "outside"), join(kubelet, "link"));
  const socketPath = join(directory, "node.sock");
  const options = { driverName: "s3block.csi", version: "0", log: new RecordingLog(), clock: systemClock, socketPath };
  server = await startNode({ ...options, nodeId: "n", maxVolumesPerNode: 8, kubeletDir: kubelet, dataPlane });
  client = new CsiClient(socketPath);
  host = new RecordingHost(sizeBytes);
});

after(async () => {
  host.restore();
  client.close();
  await server.close();
  await rm(directory, { recursive: true, force: true });
});

beforeEach(() => host.reset());

type Request = Record<string, unknown>;

/** A whole life of a volume as a kubelet asks for it, each call whole and right. */
function baseline(access: "mount" | "block", fsType: string): [string, Request][] {
  const accessMode = { mode: "SINGLE_NODE_WRITER" };
  const volumeCapability =
    access === "block" ? { block: {}, accessMode } : { mount: { fsType, mountFlags: ["noatime"] }, accessMode };
  const stagingTargetPath = join(kubelet, "staging");
  const targetPath = join(kubelet, "pods", "target");
  const publishContext = { publication: "1", readOnly: "false", durability: "s3" };
  const common = { volumeId, secrets: {}, volumeContext: {} };
  return [
    ["nodeStageVolume", { ...common, stagingTargetPath, volumeCapability, publishContext }],
    ["nodePublishVolume", { ...common, stagingTargetPath, targetPath, volumeCapability, publishContext }],
    ["nodeGetVolumeStats", { volumeId, volumePath: targetPath, stagingTargetPath }],
    ["nodeUnpublishVolume", { volumeId, targetPath }],
    ["nodeUnstageVolume", { volumeId, stagingTargetPath }],
  ];
}

/** Answers of calls that were refused or failed in an orderly way. */
const orderly: readonly number[] = [
  code.OK,
  code.INVALID_ARGUMENT,
  code.NOT_FOUND,
  code.ALREADY_EXISTS,
  code.FAILED_PRECONDITION,
  code.UNAVAILABLE,
  code.ABORTED,
  code.RESOURCE_EXHAUSTED,
];

const environment = ["LC_ALL", "PATH"];
const lock = ["--exclusive", "--no-fork", "--timeout", "5", "--conflict-exit-code", "75", DEVICE];
const mountOption =
  /^(noatime|discard|ro|nouuid|commit=\d+|context="[\w.:,-]+"|context=[\w.:-]+)(,(?:noatime|discard|ro|nouuid|commit=\d+|context="[\w.:,-]+"|context=[\w.:-]+))*$/;

function isTarget(path: string | undefined): boolean {
  const plain = path !== undefined && !path.includes("\0") && !path.split("/").includes("..");
  return plain && path.startsWith(`${kubelet}/`) && !path.startsWith(`${kubelet}/link/`);
}

/** True for the command lines that the driver may run; written from the manual pages and apart from the code. */
function isAllowed(program: string, args: readonly string[]): boolean {
  const line = args.join("\u0001");
  const is = (...expected: string[]): boolean => line === expected.join("\u0001");
  const last = args.at(-1);
  switch (program) {
    case "mount":
      if (args[3] === "bind" || args[3] === "bind,ro") {
        const source = args[5];
        return (
          is("-i", "-n", "-o", args[3], "--", source, last ?? "") &&
          isTarget(last) &&
          (source === DEVICE || isTarget(source))
        );
      }
      return (
        args.slice(0, 3).join(" ") === "-i -n -t" &&
        (args[3] === "ext4" || args[3] === "xfs") &&
        isTarget(last) &&
        (is(...args.slice(0, 4), "--", DEVICE, last ?? "") ||
          (is(...args.slice(0, 4), "-o", args[5], "--", DEVICE, last ?? "") && mountOption.test(args[5])))
      );
    case "umount":
      return is("-c", "-i", "-n", "--", last ?? "") && isTarget(last);
    case "blkid":
    case "e2fsck":
      return (
        args.at(-2) === "--" &&
        last === DEVICE &&
        args.slice(0, -2).every((arg) => /^(--?[a-z-]+|export|TYPE|PTTYPE)$/.test(arg))
      );
    case "mke2fs":
      return (
        args.at(-3) === "--" && args.at(-2) === DEVICE && /^\d+$/.test(last ?? "") && plainOptions(args.slice(0, -3))
      );
    case "mkfs.xfs":
      return is("-V") || (args.at(-2) === "--" && last === DEVICE && plainOptions(args.slice(0, -2)));
    case "dd":
      return args.every(
        (arg) =>
          arg === `if=${DEVICE}` ||
          arg === `of=${DEVICE}` ||
          /^(bs|skip|seek|count|iflag|oflag|conv|status)=[a-z0-9,]+$/.test(arg),
      );
    case "blockdev":
      return is("--flushbufs", DEVICE);
    case "blkdiscard":
      return (
        args.length === 4 && args[0] === "--length" && /^\d+$/.test(args[1]) && args[2] === "--" && last === DEVICE
      );
    default:
      return false;
  }
}

function plainOptions(args: readonly string[]): boolean {
  return args.every((arg) => /^[A-Za-z0-9_=,-]+$/.test(arg));
}

function mustBeAllowed({ path, args, options }: StartedProgram): void {
  const shown = JSON.stringify([path, ...args]);
  assert.equal(options.shell ?? false, false, shown);
  assert.deepEqual(Object.keys(options.env ?? {}).toSorted(), environment, shown);
  assert.match(path, /^\/(usr\/)?(local\/)?s?bin\/[a-z0-9.]+$/, shown);
  const isLocked = path.endsWith("/flock");
  if (isLocked) assert.deepEqual(args.slice(0, lock.length), lock, shown);
  const [program, ...rest] = isLocked ? args.slice(lock.length) : [path, ...args];
  assert.match(program, /^\/(usr\/)?(local\/)?s?bin\/[a-z0-9.]+$/, shown);
  assert.ok(isAllowed(program.split("/").at(-1) ?? "", rest), `a command line of another form: ${shown}`);
}

function checkHost(): void {
  assert.deepEqual(host.forbidden, []);
  for (const program of host.programs) mustBeAllowed(program);
  for (const { call, path, options } of host.changes) {
    assert.ok(["mkdir", "rmdir", "unlink", "open"].includes(call), `${call} ${path}`);
    assert.ok(isTarget(path), `${call} ${path}`);
    assert.ok(call !== "open" || options === "wx", path);
    assert.ok(!JSON.stringify(options ?? "").includes("recursive"), path);
  }
}

async function live(calls: readonly [string, Request][]): Promise<number[]> {
  const codes: number[] = [];
  for (const [method, request] of calls) codes.push(await client.codeOf("Node", method, request));
  for (const answer of codes) assert.ok(orderly.includes(answer), `answered ${code[answer]}`);
  return codes;
}

for (const [access, fsType, programs] of [
  ["mount", "ext4", ["mke2fs", "mount", "umount"]],
  ["mount", "xfs", ["mkfs.xfs", "mount", "umount"]],
  ["block", "", ["mount", "umount"]],
] as const) {
  test(`the life of a volume (${access} ${fsType}) runs only what it may, and leaves no target behind`, async () => {
    const calls = baseline(access, fsType);
    const stats = calls.findIndex(([method]) => method === "nodeGetVolumeStats");
    const codes = await live(calls);
    assert.deepEqual(codes.toSpliced(stats, 1), [0, 0, 0, 0]);
    checkHost();
    const ran = new Set(
      host.programs.map(({ path, args }) => (path.endsWith("/flock") ? args[lock.length] : path).split("/").at(-1)),
    );
    for (const program of programs) assert.ok(ran.has(program), `${program} was run`);
    assert.deepEqual(await readdir(join(kubelet, "pods")), []);
  });
}

/** Where withHostile puts a text; "devicePath" is what the data plane answers. */
const fields = [
  "volumeId",
  "stagingTargetPath",
  "targetPath",
  "volumePath",
  "fsType",
  "mountFlags",
  "publishContext",
  "publishContextKey",
  "secrets",
  "secretKey",
  "volumeContext",
  "volumeMountGroup",
  "devicePath",
];

test("no string of a request makes the driver run anything else, or touch a path outside of the kubelet's directory", async () => {
  const where = fc.constantFrom(...fields);
  const property = fc.asyncProperty(
    where,
    hostileValue(() => kubelet),
    fc.constantFrom<["mount" | "block", string]>(["mount", "ext4"], ["mount", "xfs"], ["mount", ""], ["block", ""]),
    async (field, hostile, [access, fsType]) => {
      host.reset();
      devicePath = field === "devicePath" ? hostile : DEVICE;
      try {
        await live(baseline(access, fsType).map(([method, request]) => [method, withHostile(request, field, hostile)]));
      } finally {
        devicePath = DEVICE;
      }
      // What an earlier call left, the right calls remove.
      await live(baseline(access, fsType).slice(3));
      checkHost();
    },
  );
  await fc.assert(property, { numRuns: 200, seed: 20261121 });
  assert.deepEqual(await readdir(join(directory, "outside")), ["keep", "pods"]);
  assert.deepEqual(await readdir(join(directory, "outside", "pods")), []);
});

/** The request with the hostile text at one place, if it has such a place. */
function withHostile(request: Request, field: string, hostile: string): Request {
  const capability = request["volumeCapability"] as { mount?: Request; accessMode: Request } | undefined;
  const mount = (change: Request): Request =>
    capability?.mount === undefined
      ? request
      : { ...request, volumeCapability: { ...capability, mount: { ...capability.mount, ...change } } };
  switch (field) {
    case "fsType":
      return mount({ fsType: hostile });
    case "mountFlags":
      return mount({ mountFlags: ["noatime", hostile] });
    case "volumeMountGroup":
      return mount({ volumeMountGroup: hostile });
    case "publishContext":
      return "publishContext" in request
        ? {
            ...request,
            publishContext: {
              ...(request["publishContext"] as Request),
              fsType: hostile,
              url: hostile,
              endpoint: hostile,
            },
          }
        : request;
    case "publishContextKey":
      return {
        ...request,
        publishContext: { publication: "1", readOnly: "false", durability: "s3", [hostile]: hostile },
      };
    case "secrets":
      return { ...request, secrets: { accessKeyId: hostile, secretAccessKey: hostile, sessionToken: hostile } };
    case "secretKey":
      return { ...request, secrets: { [hostile]: "x" } };
    case "volumeContext":
      return { ...request, volumeContext: { [hostile]: hostile } };
    default:
      return field in request ? { ...request, [field]: hostile } : request;
  }
}

test("an option that hides behind a mount flag never reaches mount", async () => {
  const flags = [
    "noatime,nobarrier",
    "context=a,nobarrier",
    'context="a",loop',
    "-oloop",
    "x-mount.mkdir",
    "helper=/bin/sh",
  ];
  for (const flag of flags) {
    host.reset();
    const [stage] = baseline("mount", "ext4");
    const [codes] = await live([[stage[0], withHostile(stage[1], "mountFlags", flag)]]);
    assert.equal(codes, code.INVALID_ARGUMENT, flag);
    assert.deepEqual(host.programs, [], flag);
  }
});

test("a target that lies behind a link out of the kubelet's directory is refused, and one that holds files stays", async () => {
  const beyond = join(kubelet, "link", "pods", "target");
  const [stage, publish, , unpublish] = baseline("mount", "ext4");
  assert.deepEqual(
    await live([
      stage,
      [publish[0], { ...publish[1], targetPath: beyond }],
      [unpublish[0], { ...unpublish[1], targetPath: beyond }],
      [stage[0], { ...stage[1], stagingTargetPath: join(kubelet, "link", "staging") }],
    ]),
    [code.OK, code.INVALID_ARGUMENT, code.INVALID_ARGUMENT, code.INVALID_ARGUMENT],
  );
  checkHost();
  const full = join(kubelet, "pods", "full");
  await mkdir(full);
  await writeFile(join(full, "file"), "a user's");
  host.reset();
  const [answer] = await live([[unpublish[0], { ...unpublish[1], targetPath: full }]]);
  assert.equal(answer, code.FAILED_PRECONDITION);
  assert.ok((await lstat(join(full, "file"))).isFile());
  checkHost();
  await rm(full, { recursive: true });
});

test("a path that would lead up, to the kubelet's directory itself or around it, is refused by every call", async () => {
  const paths = ["..", ".", "", "pods/..", "pods/.", "pods/../..", "/pods", "pods//target", "pods/../pods/target"];
  for (const path of [...paths.map((text) => `${kubelet}/${text}`), kubelet, `${kubelet}x/target`, "/", "/etc"]) {
    for (const [method, request] of baseline("mount", "ext4")) {
      if (method === "nodeGetVolumeStats") continue;
      for (const field of ["stagingTargetPath", "targetPath"]) {
        if (!(field in request)) continue;
        host.reset();
        const [answer] = await live([[method, { ...request, [field]: path }]]);
        const expected =
          method === "nodePublishVolume" ? [code.INVALID_ARGUMENT, code.FAILED_PRECONDITION] : [code.INVALID_ARGUMENT];
        assert.ok(expected.includes(answer), `${method} ${field}=${path} answered ${code[answer]}`);
        assert.deepEqual(host.changes, []);
        assert.deepEqual(host.programs, []);
      }
    }
  }
});

test("every hostile text is tried as volume id, and none is taken for one", async () => {
  const hostileOnes = hostileTexts(kubelet).filter((text) => !/^[a-z0-9]{1,63}$/.test(text));
  assert.ok(hostileOnes.length > 150);
  for (const hostile of hostileOnes) {
    const [stage] = baseline("mount", "ext4");
    host.reset();
    const [answer] = await live([[stage[0], { ...stage[1], volumeId: hostile }]]);
    assert.equal(answer, code.INVALID_ARGUMENT, JSON.stringify(hostile.slice(0, 80)));
    assert.deepEqual(host.programs, []);
  }
});
