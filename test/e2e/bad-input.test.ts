/**
 * Requests and settings that cannot work, against the real controller and server processes: each ends in one clear
 * error that names the cause and the way out, and leaves nothing half made. No kernel is needed for any of it.
 */
import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { CsiClient } from "../csi/csi-client.ts";
import { type ScriptedS3, s3Refusal, startScriptedS3 } from "../store/scripted-s3.ts";
import { type S3Server, startS3Server } from "../suites/s3-server.ts";
import { refusal } from "./claim.ts";
import { DriverProcess } from "./process.ts";

const TIB = 1024n ** 4n;
const capability = { mount: { fsType: "ext4" }, accessMode: { mode: "SINGLE_NODE_WRITER" } };

let directory: string;
let controller: DriverProcess;
let client: CsiClient;

interface Created {
  volume: { volumeId: string; capacityBytes: string };
}

function create(request: object): Promise<Created> {
  return client.call<Created>("Controller", "createVolume", { volumeCapabilities: [capability], ...request });
}

/** Keys of the driver's own store. */
async function keys(): Promise<string[]> {
  const entries = await readdir(join(directory, "store"), { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => `${entry.parentPath}/${entry.name}`);
}

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "s3block-e2e-bad-"));
  const socket = join(directory, "csi.sock");
  controller = new DriverProcess("controller", [
    `--store=file://${join(directory, "store")}`,
    `--csi-socket=${socket}`,
  ]);
  await controller.start();
  client = new CsiClient(socket);
});

after(async () => {
  client.close();
  await controller.stop("SIGTERM");
  await rm(directory, { recursive: true });
});

describe("sizes and names", () => {
  test("impossible sizes are refused with the limits, and make nothing", async () => {
    const stored = await keys();
    const cases: [object, string, RegExp][] = [
      [{ requiredBytes: "-1" }, "INVALID_ARGUMENT", /required_bytes must not be negative/],
      [{ limitBytes: "-4096" }, "INVALID_ARGUMENT", /limit_bytes must not be negative/],
      [
        { requiredBytes: String(64n * TIB + 1n) },
        "OUT_OF_RANGE",
        /ask for one within the limits.*maxBytes=70368744177664/,
      ],
      [{ requiredBytes: String(2n ** 63n - 1n) }, "OUT_OF_RANGE", /maxBytes=70368744177664/],
      [{ requiredBytes: "8192", limitBytes: "4096" }, "INVALID_ARGUMENT", /required_bytes is larger than limit_bytes/],
      [{ limitBytes: "4096" }, "OUT_OF_RANGE", /minBytes=/],
    ];
    for (const [capacityRange, code, text] of cases) {
      const answer = await refusal(() => create({ name: "sized", capacityRange }));
      assert.equal(answer.code, code, JSON.stringify(capacityRange));
      assert.match(answer.text, text);
    }
    assert.deepEqual(await keys(), stored);
  });

  test("no size means 1 GiB, and 64 TiB is possible", async () => {
    const usual = await create({ name: "usual", capacityRange: { requiredBytes: "0" } });
    assert.equal(usual.volume.capacityBytes, String(2 ** 30));
    const largest = await create({ name: "largest", capacityRange: { requiredBytes: String(64n * TIB) } });
    assert.equal(largest.volume.capacityBytes, String(64n * TIB));
    for (const { volume } of [usual, largest]) {
      await client.call("Controller", "deleteVolume", { volumeId: volume.volumeId });
    }
  });

  test("names of 128 characters, of slashes and of dots make volumes of their own; longer ones are refused", async () => {
    const names = ["n".repeat(128), "/", "../../etc/passwd", "..", ".", "a/b", "a//b", "a/./b", "ä".repeat(128)];
    const ids = new Set<string>();
    for (const name of names) {
      const { volume } = await create({ name });
      assert.match(volume.volumeId, /^vol-[0-9a-f]{32}$/);
      assert.equal((await create({ name })).volume.volumeId, volume.volumeId, "a retry finds it");
      ids.add(volume.volumeId);
    }
    assert.equal(ids.size, names.length);
    for (const volumeId of ids) await client.call("Controller", "deleteVolume", { volumeId });
    assert.deepEqual(await keys(), [], "nothing lies anywhere else, and nothing is left");
    assert.deepEqual(await readdir(directory), ["csi.sock", "store"]);
    for (const name of ["", "n".repeat(129), "a\u0000b", "a\u001bb"]) {
      const { code, text } = await refusal(() => create({ name }));
      assert.equal(code, "INVALID_ARGUMENT", JSON.stringify(name));
      assert.match(text, /name/);
    }
  });

  test("ids that no volume has are no error to delete, and no path into the store", async () => {
    const stored = await keys();
    for (const volumeId of ["../../store", "vol-/../..", "VOL", "-x", "a".repeat(64)]) {
      await client.call("Controller", "deleteVolume", { volumeId });
      const request = { volumeId, nodeId: "n", volumeCapability: capability };
      const { code } = await refusal(() => client.call("Controller", "controllerPublishVolume", request));
      assert.equal(code, "INVALID_ARGUMENT", volumeId);
    }
    assert.deepEqual(await keys(), stored);
  });
});

describe("stores", () => {
  let s3: S3Server;
  let lax: ScriptedS3;
  let readOnly: ScriptedS3;

  before(async () => {
    s3 = await startS3Server();
    lax = await startScriptedS3((request, response) => {
      if (request.method === "POST")
        response.writeHead(200, { "content-type": "application/xml" }).end("<DeleteResult/>");
      else response.writeHead(200, { etag: '"0"' }).end();
    });
    readOnly = await startScriptedS3((request, response) => {
      if (request.method === "GET") s3Refusal(response, 404, "NoSuchKey");
      else s3Refusal(response, 403, "AccessDenied");
    });
  });
  after(async () => {
    await Promise.all([s3.stop(), lax.stop(), readOnly.stop()]);
  });

  interface BadStore {
    name: string;
    bucket: string;
    endpoint: string;
    secrets: { accessKeyId: string; secretAccessKey: string };
    code: string;
    text: RegExp;
  }

  function badStores(): BadStore[] {
    const { accessKeyId, secretAccessKey, endpoint, bucket } = s3;
    const right = { accessKeyId, secretAccessKey };
    const wrong = { accessKeyId, secretAccessKey: "canary-wrong-secret" };
    const unknown = { accessKeyId: "canary-unknown-key", secretAccessKey };
    const missing = /bucket does not exist: create it, or correct the store's URL and endpoint.*bucket=missing-bucket/;
    return [
      { name: "missing", bucket: "missing-bucket", endpoint, secrets: right, code: "NOT_FOUND", text: missing },
      {
        name: "wrong-secret",
        bucket,
        endpoint,
        secrets: wrong,
        code: "INVALID_ARGUMENT",
        text: /signature does not match: check the access key and the secret/,
      },
      {
        name: "unknown-key",
        bucket,
        endpoint,
        secrets: unknown,
        code: "INVALID_ARGUMENT",
        text: /does not know this access key: check/,
      },
      {
        name: "read-only",
        bucket: "test-bucket",
        endpoint: readOnly.endpoint,
        secrets: right,
        code: "INVALID_ARGUMENT",
        text: /access denied: allow these credentials to get, put, list and delete/,
      },
      {
        name: "lax",
        bucket: "test-bucket",
        endpoint: lax.endpoint,
        secrets: right,
        code: "INVALID_ARGUMENT",
        text: /does not keep conditional writes.*two nodes could write one volume.*use a store that has them/,
      },
    ];
  }

  test("a StorageClass with a store that cannot be used is refused with the cause, and leaves no trace", async () => {
    const stored = await keys();
    for (const { name, bucket, endpoint, secrets, code, text } of badStores()) {
      const answer = await refusal(() => create({ name, parameters: { bucket, endpoint }, secrets }));
      assert.match(answer.text, text, name);
      assert.equal(answer.code, code, name);
      assert.doesNotMatch(answer.text, /canary/);
    }
    assert.deepEqual(await keys(), stored, "neither a volume nor a location is recorded");
    assert.doesNotMatch(JSON.stringify(controller.lines), /canary/);
  });

  test("the same claim succeeds once the secret is right", async () => {
    const [, wrong] = badStores();
    const { bucket, endpoint } = wrong;
    const parameters = { bucket, endpoint };
    await refusal(() => create({ name: "repaired", parameters, secrets: wrong.secrets }));
    const { accessKeyId, secretAccessKey } = s3;
    const secrets = { accessKeyId, secretAccessKey };
    const { volume } = await create({ name: "repaired", parameters, secrets });
    await client.call("Controller", "deleteVolume", { volumeId: volume.volumeId, secrets });
  });

  for (const command of ["controller", "server"] as const) {
    test(`a ${command} with a store that cannot be used ends with one line that says why`, async () => {
      for (const { name, bucket, endpoint, secrets, text } of badStores()) {
        const place = join(directory, `${command}-${name}`);
        const own =
          command === "controller"
            ? [`--csi-socket=${place}.sock`]
            : [`--state-dir=${place}`, `--run-dir=${place}-run`, `--control-socket=${place}.sock`, "--threads=1"];
        const environment = { AWS_ACCESS_KEY_ID: secrets.accessKeyId, AWS_SECRET_ACCESS_KEY: secrets.secretAccessKey };
        const flags = [`--store=s3://${bucket}`, `--s3-endpoint=${endpoint}`, ...own];
        const failing = new DriverProcess(command, flags, environment);
        failing.launch();
        assert.notEqual(await failing.end(), 0);
        assert.match(failing.stderr, text, name);
        assert.match(failing.stderr, /^s3block: [^\n]+\n$/);
        assert.doesNotMatch(failing.stderr + JSON.stringify(failing.lines), /canary/);
      }
    });
  }
});
