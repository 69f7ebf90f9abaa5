/**
 * The store of the environment as the demonstration sees it: a prefix of its own for each run, so that what is left of
 * the run can be told, and taken away, without a look at anything else in the bucket.
 */
import { nullLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import { parseArguments } from "../../src/cli/config.ts";
import { storeSettings } from "../../src/cli/store-settings.ts";
import { listAll, type ObjectStore } from "../../src/store/object-store.ts";
import { openStore } from "../../src/store/open-store.ts";

const deadlineMs = 20_000;
const keysPerDelete = 1000;
const defaultRegion = "us-east-1";

/** URL of a run's place in the bucket or directory that the environment names; undefined where it names none. */
export function storeUrlOfRun(): string | undefined {
  const { S3BLOCK_STORE: base = "" } = process.env;
  const run = `demo-${systemRandom.bytes(8).toString("hex")}`;
  return base === "" ? undefined : `${base.replace(/\/$/, "")}/${run}`;
}

/** Opened with the settings of the environment, as the driver's own commands do. */
export function openDemoStore(storeUrl: string): ObjectStore {
  const { values } = parseArguments("volume", [`--store=${storeUrl}`], process.env);
  const parts = { clock: systemClock, random: systemRandom, log: nullLog, limits: { deadlineMs } };
  return openStore(storeSettings(values), parts);
}

export async function storedKeys(store: ObjectStore): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of listAll(store, "")) keys.push(key);
  return keys;
}

export async function removeStoredKeys(store: ObjectStore): Promise<void> {
  const keys = await storedKeys(store);
  for (let at = 0; at < keys.length; at += keysPerDelete) await store.delete(keys.slice(at, at + keysPerDelete));
}

/** URLs of the S3 service that the environment names; none where the store is a directory. */
export function s3Endpoints(): string[] {
  const { S3BLOCK_STORE: store = "", S3BLOCK_S3_ENDPOINT: given = "", S3BLOCK_S3_REGION: region } = process.env;
  if (!store.startsWith("s3:")) return [];
  if (given === "") return [`https://s3.${region ?? defaultRegion}.amazonaws.com`];
  return given.split(",").map((text) => text.trim());
}

/** What another machine must know of the environment to use the store where only `s3Endpoints()` can be reached. */
export function storeEnvironment(): Record<string, string> {
  const entries = Object.entries(process.env).filter(([name]) => /^(HOME|AWS_.*|S3BLOCK_(STORE|S3_.*))$/.test(name));
  const found = Object.fromEntries(entries.map(([name, value]) => [name, value ?? ""]));
  const endpoints = s3Endpoints();
  if (endpoints.length === 0 || (found["S3BLOCK_S3_ENDPOINT"] ?? "") !== "") return found;
  return { ...found, S3BLOCK_S3_ENDPOINT: endpoints.join(","), S3BLOCK_S3_PATH_STYLE: "true" };
}
