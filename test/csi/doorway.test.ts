/** The doorway: locks, status codes, parameters, ids, contexts and paths, without a server. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import fc from "fast-check";
import { AssertionError } from "../../src/base/assert.ts";
import { type ErrorKind, isKind, OperationError } from "../../src/base/errors.ts";
import { NodePaths, removeTarget } from "../../src/csi/node-paths.ts";
import { OperationLock } from "../../src/csi/operation-lock.ts";
import { locationContext, parseParameters } from "../../src/csi/parameters.ts";
import { decodePublishContext, encodePublishContext } from "../../src/csi/publish-context.ts";
import { mustPath, mustVolumeName, parseSecrets } from "../../src/csi/requests.ts";
import { CsiError, statusOfError } from "../../src/csi/status.ts";
import { getLocationHash, volumeIdOfName } from "../../src/csi/volume-names.ts";

const isInvalid = (error: unknown): boolean => isKind(error, "invalid");

test("a second operation on a volume is told to retry, also when it comes before the first has awaited anything", async () => {
  const lock = new OperationLock();
  const first = Promise.withResolvers<string>();
  const running = lock.run("vol-1", "NodeStageVolume", () => first.promise);
  await assert.rejects(
    lock.run("vol-1", "NodeUnstageVolume", () => Promise.resolve("never")),
    (error) => isKind(error, "busy") && error.message.includes("running=NodeStageVolume"),
  );
  assert.equal(await lock.run("vol-2", "NodeStageVolume", () => Promise.resolve("other volume")), "other volume");
  first.resolve("done");
  assert.equal(await running, "done");
  assert.equal(await lock.run("vol-1", "NodeUnstageVolume", () => Promise.resolve("free again")), "free again");
});

test("the lock is free again after work that failed, synchronously or not", async () => {
  const lock = new OperationLock();
  await assert.rejects(lock.run("vol-1", "a", () => Promise.reject(new Error("x"))));
  await assert.rejects(
    lock.run("vol-1", "b", () => {
      throw new Error("y");
    }),
  );
  assert.equal(await lock.run("vol-1", "c", () => Promise.resolve(1)), 1);
});

test("every kind of error has its code, and what nobody expected is not final", () => {
  const expected: Record<ErrorKind, code> = {
    invalid: code.INVALID_ARGUMENT,
    "not-found": code.NOT_FOUND,
    conflict: code.ALREADY_EXISTS,
    busy: code.ABORTED,
    "in-use": code.FAILED_PRECONDITION,
    exhausted: code.RESOURCE_EXHAUSTED,
    unavailable: code.UNAVAILABLE,
    fenced: code.FAILED_PRECONDITION,
    corrupt: code.DATA_LOSS,
  };
  for (const [kind, answer] of Object.entries(expected)) {
    assert.equal(statusOfError(new OperationError(kind as ErrorKind, "x")).code, answer, kind);
  }
  assert.equal(statusOfError(new CsiError(code.OUT_OF_RANGE, "invalid", "x")).code, code.OUT_OF_RANGE);
  for (const error of [new TypeError("secret inside"), new AssertionError("bug"), "text", undefined]) {
    const { code: answer, details } = statusOfError(error);
    assert.equal(answer, code.UNAVAILABLE);
    assert.doesNotMatch(details, /secret inside/);
  }
});

test("details are one printable line of bounded length without secrets", () => {
  const error = new OperationError("invalid", `a\nb\u0000c hunter2hunter2 hunter2 ${"x".repeat(5000)}`);
  const { details } = statusOfError(error, ["hunter2", "hunter2hunter2", ""]);
  assert.equal(details.length, 1024);
  assert.match(details, /^a b c \[redacted\] \[redacted\] x/);
});

test("ids are derived from name and location alone", () => {
  assert.equal(volumeIdOfName("a", undefined), "vol-ca978112ca1bbdcafac231b39a23dc4d");
  const located = volumeIdOfName("a", "0123456789abcdef");
  assert.equal(located, "loc-0123456789abcdef-ca978112ca1bbdcafac231b39a23dc4d");
  assert.equal(getLocationHash(located), "0123456789abcdef");
  assert.equal(getLocationHash(volumeIdOfName("a", undefined)), undefined);
});

test("parameters have defaults, and Kubernetes' own keys are let through", () => {
  assert.deepEqual(parseParameters({}), {
    location: undefined,
    durability: "s3",
    fsType: undefined,
    blockSizeBytes: 4096,
  });
  const extra = { "csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/fstype": "xfs", blockSize: "512" };
  assert.equal(parseParameters(extra).fsType, "xfs");
  assert.equal(parseParameters(extra).blockSizeBytes, 512);
});

test("a location survives the way through a volume's context", () => {
  for (const location of [
    { bucket: "bucket-1" },
    { bucket: "bucket.1", prefix: "a/b", endpoint: "http://10.0.0.1:9000", region: "us-east-1" },
  ]) {
    assert.deepEqual(locationContext(parseParameters(location).location), location);
  }
  assert.equal(parseParameters({ bucket: "bucket", prefix: "/a/b/" }).location?.url, "s3://bucket/a/b");
});

test("hostile parameters are refused by name", () => {
  const hostile: Record<string, string>[] = [
    { bucket: "../etc" },
    { bucket: "a..b" },
    { bucket: "UPPER" },
    { bucket: "x" },
    { bucket: "ok-bucket", prefix: "a/../b" },
    { bucket: "ok-bucket", prefix: "a//b" },
    { bucket: "ok-bucket", prefix: "a\nb" },
    { bucket: "ok-bucket", prefix: "x".repeat(300) },
    { bucket: "ok-bucket", endpoint: "https://user:password@example.org" },
    { bucket: "ok-bucket", endpoint: "file:///etc/passwd" },
    { bucket: "ok-bucket", endpoint: "https://example.org/path" },
    { bucket: "ok-bucket", endpoint: "https://example.org\n" },
    { bucket: "ok-bucket", endpoint: "-d" },
    { bucket: "ok-bucket", region: "../.." },
    { prefix: "a" },
    { endpoint: "https://example.org" },
    { region: "eu" },
    { durability: "none" },
    { blockSize: "1024" },
    { fsType: "btrfs" },
    { fsType: "ext4", "csi.storage.k8s.io/fstype": "xfs" },
    { Bucket: "ok-bucket" },
    { toString: "x" },
  ];
  for (const parameters of hostile)
    assert.throws(() => parseParameters(parameters), isInvalid, JSON.stringify(parameters));
});

test("a publish context comes back as it was given, and nobody else's is taken", () => {
  const context = { publication: 7, readOnly: true, durability: "local", fsType: "xfs" } as const;
  const location = { url: "s3://b/p", endpoint: "https://e", region: "r" };
  assert.deepEqual(decodePublishContext(encodePublishContext({ ...context, location })), { ...context, location });
  const own = decodePublishContext(encodePublishContext({ ...context, location: undefined }));
  assert.deepEqual(own.location, { url: "", endpoint: "", region: "" });
  const fields = encodePublishContext({ ...context, location: undefined });
  for (const wrong of [
    {},
    { ...fields, publication: "0" },
    { ...fields, publication: "1e3" },
    { ...fields, publication: "9007199254740993" },
    { ...fields, readOnly: "yes" },
    { ...fields, durability: "" },
  ]) {
    assert.throws(
      () => decodePublishContext(wrong),
      (error) => error instanceof CsiError && error.code === code.FAILED_PRECONDITION,
    );
  }
});

test("paths that are not plain and absolute are refused", () => {
  assert.equal(mustPath("target_path", "/var/lib/kubelet/x/"), "/var/lib/kubelet/x");
  for (const path of [
    "",
    "relative",
    "/a/../b",
    "/a/./b",
    "/a//b",
    "/a\nb",
    "/a\u0000b",
    "-d",
    `/${"x".repeat(5000)}`,
  ]) {
    assert.throws(() => mustPath("target_path", path), isInvalid, JSON.stringify(path));
  }
});

test("any path that is let through stays below the root, whatever links lie on the way", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-paths-"));
  context.after(() => rm(directory, { recursive: true }));
  await mkdir(join(directory, "kubelet/pods"), { recursive: true });
  await mkdir(join(directory, "outside"));
  await symlink(join(directory, "outside"), join(directory, "kubelet/escape"));
  await symlink(join(directory, "kubelet"), join(directory, "alias"));
  const paths = new NodePaths(join(directory, "alias"));
  assert.equal(await paths.resolve(join(directory, "alias/pods/x")), join(directory, "kubelet/pods/x"));
  assert.equal(await paths.resolve(join(directory, "kubelet/absent/x")), undefined);
  for (const path of ["outside/x", "kubelet/escape/x", "kubelet"]) {
    await assert.rejects(paths.resolve(join(directory, path)), isInvalid, path);
  }
  await assert.rejects(paths.mustResolve(join(directory, "kubelet/absent/x")), (error) => isKind(error, "not-found"));
});

test("a target that holds anything is never removed", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-paths-"));
  context.after(() => rm(directory, { recursive: true }));
  await mkdir(join(directory, "full"));
  await writeFile(join(directory, "full/file"), "data");
  await writeFile(join(directory, "empty"), "");
  await symlink(join(directory, "full"), join(directory, "link"));
  for (const name of ["full", "full/file", "link"]) {
    await assert.rejects(removeTarget(join(directory, name)), (error) => isKind(error, "in-use"), name);
  }
  await removeTarget(join(directory, "empty"));
  await removeTarget(join(directory, "empty"));
});

test("access keys come in pairs without line ends, and other keys of the Secret are left alone", () => {
  const keys = { accessKeyId: "a", secretAccessKey: "b" };
  assert.deepEqual(parseSecrets({ ...keys, other: "c" }), keys);
  assert.deepEqual(parseSecrets({}), {});
  assert.throws(() => parseSecrets({ accessKeyId: "a" }), isInvalid);
  assert.throws(
    () => parseSecrets({ accessKeyId: "a", secretAccessKey: "canary\n" }),
    (error) => isKind(error, "invalid") && !error.message.includes("canary"),
  );
});

test("any text is a volume name or refused, and any name has an id", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 200 }), (name) => {
      try {
        assert.match(volumeIdOfName(mustVolumeName(name), undefined), /^vol-[0-9a-f]{32}$/);
      } catch (error) {
        assert.ok(isInvalid(error));
      }
    }),
  );
});
