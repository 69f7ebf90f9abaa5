/**
 * JSON values made worse, by seed: for doorways whose input is structured text (records, messages, parameters). The
 * result is JSON again but for one case in eight, which is mutated as plain bytes.
 */
import type { SeededRandom } from "../../src/base/seeded-random.ts";
import { mutated } from "./mutation.ts";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** Texts that have broken parsers, paths, options, logs and shells before. */
export const hostileTexts: readonly string[] = [
  "",
  " ",
  "0",
  "-1",
  "1e3",
  "9007199254740993",
  "18446744073709551615",
  "true",
  "null",
  "..",
  "../../etc/passwd",
  "/",
  "//",
  "/../..",
  "-o",
  "--help",
  "--=",
  "a\nb",
  "a\0b",
  "\u007f",
  "\ud800",
  "\u202e\u0000",
  "%00",
  "$(reboot)",
  "`id`",
  "'; drop --",
  "a,b=c",
  "__proto__",
  "constructor",
  "toString",
  "s3://",
  "http://user:pass@h/?q#f",
  "http://[::1",
  "file:///etc",
  "unix:/",
  "tcp://[::]:99999",
  "x".repeat(129),
  "x".repeat(5000),
  "é".repeat(2100),
];

const hostileNumbers: readonly number[] = [
  0,
  -0,
  -1,
  1,
  0.5,
  511,
  4095,
  4096,
  2 ** 31,
  2 ** 32,
  2 ** 46,
  2 ** 53,
  1e21,
  -1e300,
];

export function mutatedJson(input: Buffer, random: SeededRandom, others: readonly Buffer[]): Buffer {
  const value = parse(input);
  if (value === undefined || random.below(8) === 0) return mutated(input, random, others);
  let root: { value: Json } = { value };
  for (let turn = random.below(3); turn >= 0; turn -= 1) root = { value: changed(root.value, random, others) };
  return Buffer.from(JSON.stringify(root.value));
}

function parse(input: Buffer): Json | undefined {
  try {
    return JSON.parse(input.toString()) as Json;
  } catch {
    return undefined;
  }
}

/** `value` with one of its nodes replaced, removed, added or exchanged. */
function changed(value: Json, random: SeededRandom, others: readonly Buffer[]): Json {
  if (typeof value !== "object" || value === null || random.below(6) === 0) return worse(value, random, others);
  const keys = Object.keys(value);
  const key = keys.length > 0 ? keys[random.below(keys.length)] : undefined;
  const copy = structuredClone<Record<string, Json> | Json[]>(value);
  const fields = copy as Record<string, Json>;
  switch (key === undefined ? 0 : random.below(8)) {
    case 0:
      if (Array.isArray(copy))
        copy.push(copy.length > 0 ? structuredClone(copy[random.below(copy.length)]) : anything(random));
      else define(fields, random.below(2) === 0 ? anyText(random) : `${key ?? ""}x`, anything(random));
      return copy;
    case 1:
      if (Array.isArray(copy)) copy.splice(Number(key), 1);
      else delete fields[key!];
      return copy;
    case 2: {
      const other = keys[random.below(keys.length)];
      [fields[key!], fields[other]] = [fields[other], fields[key!]];
      return copy;
    }
    default:
      define(fields, key!, changed(fields[key!], random, others));
      return copy;
  }
}

/** As JSON.parse does it: an own property, also for "__proto__". */
function define(fields: Record<string, Json>, key: string, value: Json): void {
  Object.defineProperty(fields, key, { value, enumerable: true, writable: true, configurable: true });
}

function worse(value: Json, random: SeededRandom, others: readonly Buffer[]): Json {
  const kind = random.below(4);
  if (typeof value === "string" && kind < 2) return mutated(Buffer.from(value), random, []).toString();
  if (typeof value === "number" && kind < 2) return value + random.below(33) - 16;
  if (kind === 2 && others.length > 0) return parse(others[random.below(others.length)]) ?? null;
  return anything(random);
}

function anything(random: SeededRandom): Json {
  switch (random.below(8)) {
    case 0:
      return hostileNumbers[random.below(hostileNumbers.length)];
    case 1:
      return random.below(2) === 0;
    case 2:
      return null;
    case 3:
      return [];
    case 4:
      return {};
    default:
      return anyText(random);
  }
}

function anyText(random: SeededRandom): string {
  return hostileTexts[random.below(hostileTexts.length)];
}
