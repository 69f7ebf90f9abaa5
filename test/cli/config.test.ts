/** The table of flags and how it is read. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { flagKeysOf, helpText, parseArguments, parseSize } from "../../src/cli/config.ts";
import { commandDescriptions, flagName, flags, flagVariable } from "../../src/cli/flags.ts";
import type { CommandName, Flag, FlagKey } from "../../src/cli/flags.ts";
import { listenAddresses } from "../../src/cli/listen-address.ts";
import { threadCount } from "../../src/cli/server-threads.ts";
import { storeSettings } from "../../src/cli/store-settings.ts";
import { isKind } from "../../src/base/errors.ts";

const commands = Object.keys(commandDescriptions) as CommandName[];
const keys = Object.keys(flags) as FlagKey[];

function invalid(pattern: RegExp): (error: unknown) => boolean {
  return (error) => isKind(error, "invalid") && pattern.test(error.message);
}

test("every flag has a plain name, a description, a command, and a default that its own rules accept", () => {
  for (const key of keys) {
    const flag: Flag = flags[key];
    assert.match(flagName(key), /^[a-z0-9]+(-[a-z0-9]+)*$/);
    assert.match(flag.description, /^[^.]{10,}$/s);
    assert.ok(flag.commands.length > 0);
    if (flag.default === undefined || flag.type === "list" || flag.default === "") continue;
    for (const command of flag.commands) {
      const given: unknown = parseArguments(command, [`--${flagName(key)}=${flag.default}`], {}).values[key];
      assert.equal(given, parseArguments(command, [], {}).values[key], key);
    }
  }
});

test("help names every flag of a command with its variable, and no other", () => {
  for (const command of commands) {
    const text = helpText(command);
    for (const key of keys) {
      const known = flagKeysOf(command).includes(key);
      assert.equal(
        text.includes(`  --${flagName(key)}`) && text.includes(`${flagVariable(key)})`),
        known,
        `${command} ${key}`,
      );
    }
  }
});

test("a flag beats its variable, which beats the default", () => {
  const environment = { S3BLOCK_NODE_ID: "from-variable", S3BLOCK_STORE: "" };
  assert.equal(parseArguments("server", [], {}).values.nodeId, "");
  assert.equal(parseArguments("server", [], environment).values.nodeId, "from-variable");
  assert.equal(parseArguments("server", ["--node-id", "from-flag"], environment).values.nodeId, "from-flag");
  assert.equal(parseArguments("server", [], environment).values.store, undefined);
});

test("values come as what they are", () => {
  const args =
    "--cache-size 10GiB --threads=2 --insecure --listen unix:/a,unix:/b --listen unix:/c --s3-path-style=false";
  const { values } = parseArguments("server", args.split(" "), { S3BLOCK_S3_ENDPOINT: "http://a, http://b" });
  assert.equal(values.cacheSize, 10 * 2 ** 30);
  assert.equal(values.threads, 2);
  assert.equal(values.insecure, true);
  assert.equal(values.s3PathStyle, false);
  assert.deepEqual(values.listen, ["unix:/a", "unix:/b", "unix:/c"]);
  assert.deepEqual(values.s3Endpoint, ["http://a", "http://b"]);
});

test("arguments that are no flags are kept in order", () => {
  const parsed = parseArguments("volume", ["create", "--store=memory:", "v1", "--", "--size"], {});
  assert.deepEqual(parsed.positional, ["create", "v1", "--size"]);
});

for (const [args, pattern] of [
  [["--no-such-flag"], /unknown flag --no-such-flag: see s3block server --help/],
  [["-x"], /unknown flag -x/],
  [["--csi-socket=/a"], /unknown flag --csi-socket/],
  [["--node-id"], /--node-id .* needs a value/],
  [["--node-id=a", "--node-id=b"], /more than once/],
  [["--node-id=a\nb"], /one line/],
  [["--threads=many"], /--threads .*S3BLOCK_THREADS.* whole number from 0 to 64/],
  [["--threads=-1"], /whole number/],
  [["--threads=65"], /from 0 to 64/],
  [["--cache-size=ten"], /a size like 512MiB/],
  [["--journal-size=1MiB"], /from 134217728/],
  [["--insecure=yes"], /true or false/],
  [["--log-level=loud"], /one of debug, info, warn, error/],
] as const) {
  test(`${args.join(" ")} is refused with the way out`, () => {
    assert.throws(() => parseArguments("server", args, {}), invalid(pattern));
  });
}

test("a variable is held to the same rules as its flag", () => {
  assert.throws(() => parseArguments("server", [], { S3BLOCK_THREADS: "x" }), invalid(/S3BLOCK_THREADS/));
});

test("sizes are whole bytes with binary units, and nothing else", () => {
  assert.equal(parseSize("4096"), 4096);
  assert.equal(parseSize("1TiB"), 2 ** 40);
  assert.equal(parseSize("5Gi"), 5 * 2 ** 30);
  for (const text of ["", "-1", "1.5GiB", "1GB", "1 GiB", "GiB", "0x10", "99999999TiB", "1e3"]) {
    assert.ok(Number.isNaN(parseSize(text)), text);
  }
});

test("arbitrary arguments are parsed or refused as invalid, never anything else", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...commands),
      fc.array(fc.oneof(fc.string(), fc.constantFrom("--threads", "--=", "--"))),
      (command, args) => {
        try {
          parseArguments(command, args, {});
        } catch (error) {
          assert.ok(isKind(error, "invalid"), String(error));
        }
      },
    ),
  );
});

test("a store must be given", () => {
  assert.throws(() => storeSettings(parseArguments("server", [], {}).values), invalid(/--store or set S3BLOCK_STORE/));
});

test("tcp needs the files of tls or the word insecure, and every other address is a path", () => {
  const addresses = (...args: string[]) => listenAddresses(parseArguments("server", args, {}).values);
  const tcp = "--listen=tcp://[::1]:10809";
  const files = ["--tls-cert-file=/c", "--tls-key-file=/k", "--tls-ca-file=/a"];
  assert.deepEqual(addresses("--listen=unix:/run/x.sock"), [{ path: "/run/x.sock" }]);
  assert.deepEqual(addresses(tcp, "--insecure"), [{ host: "::1", port: 10809, insecure: true }]);
  const tls = { certFile: "/c", keyFile: "/k", caFile: "/a" };
  assert.deepEqual(addresses(tcp, ...files), [{ host: "::1", port: 10809, tls }]);
  assert.throws(() => addresses(tcp), invalid(/without tls.*--tls-cert-file.*--insecure/));
  assert.throws(() => addresses(tcp, ...files, "--insecure"), invalid(/exclude each other/));
  for (const missing of files) {
    const given = files.filter((flag) => flag !== missing);
    assert.throws(
      () => addresses(tcp, ...given),
      invalid(new RegExp(`needs three files: give ${missing.slice(0, -3)}`)),
    );
  }
  for (const text of ["unix:relative", "http://x", "tcp://x", "tcp://x:70000"]) {
    assert.throws(() => addresses(`--listen=${text}`, "--insecure"), invalid(/./));
  }
});

test("threads leave one core for control, and are bounded", () => {
  assert.deepEqual(
    [1, 2, 3, 8, 64].map((cores) => threadCount(0, cores)),
    [1, 1, 2, 4, 4],
  );
  assert.equal(threadCount(7, 2), 7);
});
