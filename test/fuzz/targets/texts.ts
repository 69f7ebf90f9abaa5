/**
 * What people, Kubernetes and the machine write: flags and environment, parameters of a StorageClass, publish contexts,
 * attachment records, keys and ids, credentials files, mountinfo. Oracle: "invalid" (or what the doorway names), or a
 * value of the declared types and ranges that means the same when it is written and read again.
 */
import assert from "node:assert/strict";
import { AttachmentRecords } from "../../../src/attachment/attachment-record.ts";
import { MemoryDisk } from "../../../src/base/memory-disk.ts";
import { flagKeysOf, parseArguments } from "../../../src/cli/config.ts";
import { type CommandName, commandDescriptions, type Flag, flags } from "../../../src/cli/flags.ts";
import { listenAddresses } from "../../../src/cli/listen-address.ts";
import { storeSettings } from "../../../src/cli/store-settings.ts";
import { locationContext, parseParameters } from "../../../src/csi/parameters.ts";
import { decodePublishContext, encodePublishContext } from "../../../src/csi/publish-context.ts";
import { parseMountInfo } from "../../../src/host/mount.ts";
import { parseKeys } from "../../../src/store/s3-credentials.ts";
import { mustVolumeId } from "../../../src/volume/identity.ts";
import * as keys from "../../../src/volume/keys.ts";
import { mutatedJson } from "../json-mutation.ts";
import type { FuzzTarget } from "../target.ts";
import { lateVerdict, verdict } from "../verdict.ts";

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** The strings of a JSON object, as a map of a message would hold them; none where the input is no object. */
function textMap(input: Buffer): Record<string, string> {
  let value: unknown;
  try {
    value = JSON.parse(input.toString());
  } catch {
    return { [input.toString()]: input.toString() };
  }
  const entries = typeof value === "object" && value !== null ? Object.entries(value) : [];
  return Object.fromEntries(
    entries.map(([key, text]) => [key, typeof text === "string" ? text : JSON.stringify(text)]),
  );
}

function configuration(): FuzzTarget {
  const commands = Object.keys(commandDescriptions) as CommandName[];
  const args = ["server", "--store=s3://bucket/p", "--s3-endpoint", "http://h:1", "--threads=2", "--cache-size=1GiB"];
  const more = [
    "server",
    "--listen",
    "unix:/run/x,tcp://[::1]:10809",
    "--insecure",
    "--journal-size=1Gi",
    "--",
    "rest",
  ];
  return {
    name: "configuration",
    seeds: [json([args, []]), json([more, ["S3BLOCK_STORE", "file:///a", "S3BLOCK_THREADS", "4"]])],
    mutate: mutatedJson,
    run(input) {
      const [given, pairs] = [0, 1].map((index) => textList(input, index));
      const command = commands.find((name) => name === given[0]) ?? "server";
      const environment: Record<string, string> = {};
      for (let at = 0; at + 1 < pairs.length; at += 2) environment[pairs[at]] = pairs[at + 1];
      return verdict(
        ["invalid"],
        () => {
          const { values } = parseArguments(command, given.slice(1), environment);
          if (command === "server") {
            listenAddresses(values);
            storeSettings(values);
          }
          return values;
        },
        (values) => {
          for (const key of flagKeysOf(command)) holdsFlag(flags[key], values[key]);
        },
      );
    },
  };
}

function textList(input: Buffer, index: number): string[] {
  let value: unknown;
  try {
    value = (JSON.parse(input.toString()) as unknown[] | null)?.[index];
  } catch {
    value = input.toString().split(" ");
  }
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.map((item) => (typeof item === "string" ? item : (JSON.stringify(item) ?? "")));
}

function holdsFlag(flag: Flag, value: unknown): void {
  if (value === undefined) return;
  if (flag.type === "list") assert.ok(Array.isArray(value) && value.every((item) => typeof item === "string"));
  else if (flag.type === "boolean") assert.equal(typeof value, "boolean");
  else if (flag.type === "string") {
    assert.equal(typeof value, "string");
    assert.ok(flag.choices === undefined || flag.choices.includes(value as string));
  } else {
    assert.ok(Number.isSafeInteger(value) && (value as number) >= (flag.min ?? 0));
    assert.ok((value as number) <= (flag.max ?? Number.MAX_SAFE_INTEGER));
  }
}

function parameters(): FuzzTarget {
  const located = { bucket: "bucket.1", prefix: "a/b", endpoint: "http://10.0.0.1:9000", region: "us-east-1" };
  const plain = { durability: "local", fsType: "xfs", blockSize: "512", "csi.storage.k8s.io/pvc/name": "claim" };
  return {
    name: "storage-class-parameters",
    seeds: [json(located), json(plain), json({ ...located, ...plain })],
    mutate: mutatedJson,
    run: (input) =>
      verdict(
        ["invalid"],
        () => parseParameters(textMap(input)),
        (value) => {
          const { location, durability, fsType, blockSizeBytes } = value;
          const written = { ...locationContext(location), durability, blockSize: String(blockSizeBytes) };
          const again = parseParameters({ ...written, ...(fsType === undefined ? {} : { fsType }) });
          assert.deepEqual(again, value);
        },
      ),
  };
}

function publishContext(): FuzzTarget {
  const context = { publication: 7, readOnly: true, durability: "local", fsType: "xfs" } as const;
  const location = { url: "s3://b/p", endpoint: "https://e", region: "r" };
  return {
    name: "publish-context",
    seeds: [json(encodePublishContext({ ...context, location }))],
    mutate: mutatedJson,
    run: (input) =>
      verdict(
        ["in-use", "invalid"],
        () => decodePublishContext(textMap(input)),
        (value) => assert.deepEqual(decodePublishContext(encodePublishContext(value)), value),
      ),
  };
}

async function attachmentRecord(): Promise<FuzzTarget> {
  const volumeId = mustVolumeId("vol-1");
  const name = `${volumeId}.json`;
  const record = {
    options: {
      volumeId,
      location: { url: "s3://b/p", endpoint: "https://e", region: "r" },
      secrets: { accessKeyId: "a", secretAccessKey: "b" },
      readOnly: false,
      durability: "s3" as const,
      publication: 3,
    },
    backend: "s3block:vol-1",
    sizeBytes: 2 ** 30,
    blockSizeBytes: 4096,
  };
  const written = new MemoryDisk();
  await new AttachmentRecords(written).write(record);
  const file = await written.open(name);
  const seed = Buffer.alloc(file.sizeBytes());
  file.readSync(seed, 0);
  return {
    name: "attachment-record",
    seeds: [seed],
    mutate: mutatedJson,
    run: async (input) => {
      const disk = new MemoryDisk();
      const target = await disk.open(name, { create: true });
      if (input.length > 0) target.writeSync(input, 0);
      const [found] = await new AttachmentRecords(disk).list();
      assert.equal(found.volumeId, volumeId);
      if (found.record === undefined) return "unreadable";
      const { options, backend, sizeBytes, blockSizeBytes } = found.record;
      const { location, secrets, readOnly, durability, publication } = options;
      assert.equal(options.volumeId, volumeId);
      assert.ok(["s3", "local", ""].includes(durability), `durability ${String(durability)}`);
      assert.equal(typeof readOnly, "boolean");
      for (const text of [location.url, location.endpoint, location.region, backend])
        assert.equal(typeof text, "string");
      for (const count of [sizeBytes, blockSizeBytes, publication])
        assert.ok(Number.isSafeInteger(count) && count >= 0);
      assert.ok(typeof secrets === "object" && secrets !== null && !Array.isArray(secrets), "secrets are a map");
      for (const secret of Object.values(secrets)) assert.equal(typeof secret, "string");
      return "value";
    },
  };
}

function objectKey(): FuzzTarget {
  const uid = "00112233445566778899aabbccddeeff";
  const number = "000000000000000a";
  const seeds = [
    `v1/volumes/vol-1/meta/${number}`,
    `v1/volumes/vol-1/${uid}/meta/${number}`,
    `v1/volumes/vol-1/${uid}/removal/0000000000000001`,
    `v1/volumes/vol-1/${uid}/epoch/${number}`,
    `v1/volumes/vol-1/${uid}/checkpoint/${number}/${number}`,
    `v1/volumes/vol-1/${uid}/map/${number}/${number}`,
    `v1/volumes/vol-1/${uid}/publication/${number}`,
    `v1/log/0a/${uid}/${number}/${number}`,
    `v1/locations/${number}`,
    `v1/nodes/${uid}`,
  ];
  return {
    name: "object-key",
    seeds: seeds.map((text) => Buffer.from(text)),
    run(input) {
      const text = input.toString();
      const parsed = keys.parseKey(text);
      if (parsed === undefined) return "none";
      assert.equal(builtKey(parsed), text);
      return parsed.kind;
    },
  };
}

function builtKey(parsed: keys.ParsedKey): string {
  switch (parsed.kind) {
    case "name":
      return keys.nameKey(parsed.id, parsed.number);
    case "meta":
      return keys.metaKey(parsed, parsed.number);
    case "removal":
      return keys.removalKey(parsed);
    case "epoch":
      return keys.epochKey(parsed, parsed.epoch);
    case "checkpoint":
      return keys.checkpointKey(parsed, parsed.epoch, parsed.number);
    case "map":
      return keys.mapKey(parsed, parsed.epoch, parsed.number);
    case "publication":
      return keys.publicationKey(parsed, parsed.number);
    case "segment":
      return keys.segmentKey(parsed.uid, parsed.epoch, parsed.sequence);
    case "location":
      return keys.locationKey(parsed.hash);
    case "node":
      return keys.nodeKey(parsed.hash);
  }
}

function credentialsFile(): FuzzTarget {
  const text = "# keys\n[default]\naws_access_key_id = AKIA\naws_secret_access_key=canary/secret\n[other]\na=b\n";
  return {
    name: "credentials-file",
    seeds: [Buffer.from(text), Buffer.from("AWS_ACCESS_KEY_ID=a\r\nAWS_SECRET_ACCESS_KEY=b\r\nAWS_SESSION_TOKEN=c")],
    run: (input) =>
      verdict(
        ["invalid"],
        () => parseKeys(input.toString(), "/path"),
        (value) => {
          for (const key of [value.accessKeyId, value.secretAccessKey, value.sessionToken ?? "x"]) {
            assert.match(key, /^\S(.*\S)?$/s);
            assert.ok(!key.includes("\n"), "a key holds a line end");
          }
        },
      ),
  };
}

function mountInfo(): FuzzTarget {
  const lines = [
    "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
    "40 36 43:0 / /var/lib/with\\040space\\011tab rw - ext4 /dev/nbd0 rw",
    "41 36 0:5 /nbd1 /target/dev rw,nosuid shared:2 master:3 - devtmpfs udev rw,size=4k",
  ];
  return {
    name: "mountinfo",
    seeds: [Buffer.from(`${lines.join("\n")}\n`)],
    run: (input) =>
      verdict(
        ["unavailable", "invalid", "corrupt"],
        () => parseMountInfo(input.toString()),
        (mounts) => {
          for (const mount of mounts) for (const value of Object.values(mount)) assert.notEqual(value, undefined);
        },
      ),
  };
}

function volumeIds(): FuzzTarget {
  return {
    name: "volume-id",
    seeds: [Buffer.from("vol-1"), Buffer.from("loc-0123456789abcdef-ca978112ca1bbdcafac231b39a23dc4d")],
    run: (input) =>
      lateVerdict(
        ["invalid"],
        async () => mustVolumeId(input.toString()),
        (id) => {
          assert.match(id, /^[a-z0-9-]+$/);
          assert.ok(id.length <= 63 && !id.startsWith("-"));
        },
      ),
  };
}

export const textTargets = {
  configuration,
  "storage-class-parameters": parameters,
  "publish-context": publishContext,
  "attachment-record": attachmentRecord,
  "object-key": objectKey,
  "credentials-file": credentialsFile,
  mountinfo: mountInfo,
  "volume-id": volumeIds,
} as const;
