/**
 * Whatever a caller of the controller writes into its strings: no program runs, no file of the machine changes, objects
 * are written under well-formed keys alone, and the answer is an orderly one. Through the real RPC layer.
 * And whatever stands in flags, variables and locations: refused or taken as what it is, no bucket name leaves its place.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import fc from "fast-check";
import { isKind } from "../../src/base/errors.ts";
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import { parseArguments } from "../../src/cli/config.ts";
import { flagName, flags } from "../../src/cli/flags.ts";
import type { FlagKey } from "../../src/cli/flags.ts";
import { listenAddresses } from "../../src/cli/listen-address.ts";
import { storeSettings } from "../../src/cli/store-settings.ts";
import { Stores } from "../../src/cli/stores.ts";
import { Redactor } from "../../src/observability/redaction.ts";
import { parseKey } from "../../src/volume/keys.ts";
import { blockCapability, mountCapability } from "../csi/csi-client.ts";
import { NODE_ID, startTestController } from "../csi/plugins.ts";
import type { TestController } from "../csi/plugins.ts";
import { hostileTexts, hostileValue } from "./hostile.ts";
import { RecordingHost } from "./recording-host.ts";

let controller: TestController;
let host: RecordingHost;

before(async () => {
  controller = await startTestController();
  host = new RecordingHost(1024 ** 3);
});

after(async () => {
  host.restore();
  await controller.close();
});

const orderly: readonly number[] = [
  code.OK,
  code.INVALID_ARGUMENT,
  code.OUT_OF_RANGE,
  code.NOT_FOUND,
  code.ALREADY_EXISTS,
  code.FAILED_PRECONDITION,
  code.ABORTED,
];

type Request = Record<string, unknown>;
type Place = (hostile: string) => [method: string, request: Request];

const volumeId = `vol-${"0".repeat(32)}`;
const created: Request = { name: "claim", volumeCapabilities: [mountCapability] };
const published: Request = { volumeId, nodeId: NODE_ID, volumeCapability: mountCapability };

/** Every string of every call. */
const places: readonly Place[] = [
  (text) => ["createVolume", { ...created, name: text }],
  (text) => ["createVolume", { ...created, parameters: { [text]: text } }],
  ...["bucket", "prefix", "endpoint", "region", "durability", "fsType", "blockSize"].map((name): Place => (text) => [
    "createVolume",
    { ...created, parameters: { bucket: "a-bucket", [name]: text } },
  ]),
  (text) => ["createVolume", { ...created, parameters: { "csi.storage.k8s.io/pvc/name": text } }],
  (text) => ["createVolume", { ...created, parameters: { [`csi.storage.k8s.io/pv/${text}`]: text } }],
  (text) => ["createVolume", { ...created, secrets: { accessKeyId: text, secretAccessKey: text } }],
  (text) => ["createVolume", { ...created, mutableParameters: { [text]: text } }],
  (text) => ["createVolume", { ...created, volumeCapabilities: [{ ...blockCapability, mount: { fsType: text } }] }],
  (text) => [
    "createVolume",
    { ...created, volumeCapabilities: [{ ...mountCapability, mount: { mountFlags: [text] } }] },
  ],
  (text) => ["deleteVolume", { volumeId: text, secrets: { [text]: text } }],
  (text) => ["controllerPublishVolume", { ...published, volumeId: text }],
  (text) => ["controllerPublishVolume", { ...published, nodeId: text }],
  (text) => ["controllerPublishVolume", { ...published, volumeContext: { [text]: text } }],
  (text) => ["controllerUnpublishVolume", { volumeId: text, nodeId: text }],
  (text) => ["controllerUnpublishVolume", { volumeId, nodeId: text }],
  (text) => ["validateVolumeCapabilities", { volumeId: text, volumeCapabilities: [mountCapability] }],
  (text) => [
    "validateVolumeCapabilities",
    { volumeId, volumeCapabilities: [mountCapability], parameters: { [text]: text } },
  ],
  (text) => ["listVolumes", { startingToken: text }],
];

async function mustStayHarmless(place: Place, hostile: string): Promise<void> {
  const answer = await controller.client.codeOf("Controller", ...place(hostile));
  assert.ok(orderly.includes(answer), `${place(hostile)[0]} answered ${code[answer]}`);
  assert.deepEqual([host.programs, host.changes, host.forbidden], [[], [], []]);
}

async function mustHoldGoodKeysAlone(): Promise<void> {
  let count = 0;
  for (const [url, store] of controller.catalogs.stores) {
    assert.match(url, /^$|^s3:\/\/[a-z0-9][a-z0-9.-]+(\/[A-Za-z0-9!_.*'()-]+)*$/);
    assert.doesNotMatch(url, /\.\./);
    for (const { key } of (await store.list("", { limit: 1000 })).objects) {
      assert.notEqual(parseKey(key), undefined, key);
      count += 1;
    }
  }
  assert.ok(count > 0);
}

test("every hostile text, at every place of every call, is refused or kept as a mere text", async () => {
  const texts = hostileTexts("/var/lib/kubelet").slice(0, 80);
  for (const place of places) await Promise.all(texts.map((text) => mustStayHarmless(place, text)));
  await mustHoldGoodKeysAlone();
});

test("any text at any place is refused or kept as a mere text", async () => {
  const property = fc.asyncProperty(
    fc.constantFrom(...places),
    hostileValue(() => "/var/lib/kubelet"),
    mustStayHarmless,
  );
  await fc.assert(property, { numRuns: 300, seed: 1121 });
  await mustHoldGoodKeysAlone();
});

test("only whoever starts the process can name a directory: locations of requests and records are buckets", () => {
  const parts = { clock: systemClock, random: systemRandom, log: nullLog, redactor: new Redactor() };
  const stores = new Stores({ settings: { url: "memory:" }, ...parts });
  for (const url of [
    "file:///etc",
    "file:/etc",
    "memory:",
    "s3:bucket",
    "/etc",
    "..",
    "http://example.org",
    ...hostileTexts("/"),
  ]) {
    const open = (): unknown => stores.of({ url, endpoint: "", region: "" }, {});
    assert.throws(open, (error) => isKind(error, "invalid"), JSON.stringify(url.slice(0, 60)));
  }
  for (const text of hostileTexts("/").filter((candidate) => !/^[a-z]+$/.test(candidate))) {
    for (const url of [`s3://${text}`, `s3://bucket/../${text}`]) {
      let location = "";
      try {
        location = stores.of({ url, endpoint: "", region: "" }, {}).location;
      } catch (error) {
        assert.ok(isKind(error, "invalid"), `${JSON.stringify(url.slice(0, 60))}: ${String(error)}`);
        continue;
      }
      assert.match(location, /^s3:\/\/[A-Za-z0-9._-]+(\/[A-Za-z0-9._=-]+)*$/, url);
      assert.doesNotMatch(location, /\.\./);
    }
  }
});

test("hostile values of every flag and variable are refused as invalid, or come out as they went in", () => {
  const names = (Object.keys(flags) as FlagKey[]).filter((key) =>
    (flags[key].commands as readonly string[]).includes("server"),
  );
  for (const key of names) {
    for (const text of hostileTexts("/")) {
      try {
        const { values } = parseArguments("server", [`--${flagName(key)}=${text}`], {});
        const value: unknown = values[key];
        if (typeof value === "string") assert.equal(value, text);
        assert.ok(!JSON.stringify(value ?? "").includes("\\n") && !JSON.stringify(value ?? "").includes("\\u0000"));
        storeSettings({ ...values, store: "memory:" });
        listenAddresses(values);
      } catch (error) {
        assert.ok(
          isKind(error, "invalid"),
          `--${flagName(key)}=${JSON.stringify(text.slice(0, 60))}: ${String(error)}`,
        );
      }
    }
  }
});
