/**
 * Other people's clients against the server, over a unix socket on this machine: libnbd's tools, qemu's, and fio.
 * They must be installed (Debian: libnbd-bin qemu-utils fio).
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { ByteGranularDevice } from "../../src/block/byte-granular.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import { FaultyDevice } from "../../src/block/faulty-device.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import { NbdServer } from "../../src/nbd/server.ts";

const MIB = 1024 * 1024;
const SIZE_BYTES = 64 * MIB;
const execute = promisify(execFile);

const exports = new Map<string, BlockDevice>();
let directory = "";
let server: NbdServer;

/** Half of the requests take a turn or more, so that answers leave in another order than the requests came. */
function jittery(inner: BlockDevice): BlockDevice {
  const random = new SeededRandom(12);
  return new FaultyDevice(inner, systemClock, () =>
    random.below(2) === 0 ? { hold: systemClock.yield() } : undefined,
  );
}

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "nbd-interop-"));
  exports.set("plain", new MemoryDevice({ sizeBytes: SIZE_BYTES }));
  exports.set("bytes", new ByteGranularDevice(jittery(new MemoryDevice({ sizeBytes: SIZE_BYTES }))));
  exports.set("read-only", new MemoryDevice({ sizeBytes: SIZE_BYTES, readOnly: true }));
  exports.set("huge", new ByteGranularDevice(new MemoryDevice({ sizeBytes: 16 * 2 ** 40 })));
  const source = {
    list: () => [...exports.keys()],
    open: async (name: string) => {
      const device = exports.get(name);
      return device === undefined ? undefined : { device, release() {} };
    },
  };
  server = new NbdServer({ source, clock: systemClock, log: nullLog });
  await server.listen({ path: join(directory, "nbd.sock") });
});

after(async () => {
  await server.close(0);
  await rm(directory, { recursive: true, force: true });
});

function uri(name: string): string {
  return `nbd+unix:///${name}?socket=${directory}/nbd.sock`;
}

async function run(program: string, ...parameters: string[]): Promise<string> {
  const { stdout } = await execute(program, parameters, { cwd: directory, timeout: 60_000, maxBuffer: 16 * MIB });
  return stdout;
}

/** A file of random content with holes. */
async function image(name: string): Promise<string> {
  const path = join(directory, name);
  const random = new SeededRandom(30);
  const content = Buffer.alloc(SIZE_BYTES);
  for (let at = 0; at < SIZE_BYTES; at += 4 * MIB) random.bytes(MIB + 512).copy(content, at + random.below(1000) * 512);
  await writeFile(path, content);
  return path;
}

describe("libnbd", () => {
  test("nbdinfo sees sizes, flags and block sizes", async () => {
    const {
      exports: [info],
    } = JSON.parse(await run("nbdinfo", "--json", uri("plain"))) as {
      exports: [Record<string, unknown>];
    };
    assert.equal(info["export-size"], SIZE_BYTES);
    for (const flag of ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"])
      assert.equal(info[flag], true, flag);
    assert.equal(info["is_read_only"], false);
    assert.equal(info["block_size_minimum"], 4096);
    assert.equal(info["block_size_maximum"], 32 * MIB);
  });

  test("nbdinfo lists the exports", async () => {
    const listed = JSON.parse(await run("nbdinfo", "--list", "--json", uri(""))) as {
      exports: { "export-name": string }[];
    };
    assert.deepEqual(
      listed.exports.map((entry) => entry["export-name"]),
      [...exports.keys()],
    );
  });

  test("an export that does not exist is refused", async () => {
    await assert.rejects(run("nbdinfo", uri("nothing")));
    await assert.rejects(run("nbdinfo", uri("../../etc/passwd")));
  });

  test("nbdcopy in by several connections and out again gives the same file", async () => {
    for (const name of ["plain", "bytes"]) {
      const source = await image("source.raw");
      await run("nbdcopy", "--connections=4", "--flush", source, uri(name));
      const copy = join(directory, "copy.raw");
      await writeFile(copy, "");
      await truncate(copy, SIZE_BYTES);
      await run("nbdcopy", "--connections=4", uri(name), copy);
      assert.ok((await readFile(copy)).equals(await readFile(source)), name);
    }
  });

  test("a read-only export refuses to be written", async () => {
    await assert.rejects(run("nbdcopy", await image("source.raw"), uri("read-only")));
  });
});

describe("qemu", () => {
  test("qemu-img converts to an export, and compares it as identical", async () => {
    const source = await image("source.raw");
    for (const name of ["plain", "bytes"]) {
      await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri(name));
      const compared = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri(name));
      assert.match(compared, /identical/);
    }
  });

  test("qemu-img keeps a qcow2 image inside an export", async () => {
    await run("qemu-img", "create", "-f", "qcow2", uri("bytes"), "32M");
    await run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 2M", "-c", "discard 1M 64k", uri("bytes"));
    assert.match(await run("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 1088k 1M", uri("bytes")), /read 1048576/);
    assert.match(await run("qemu-img", "check", "-f", "qcow2", uri("bytes")), /No errors/);
  });

  test("qemu-io writes odd ranges, zeroes and trims, and reads what it should", async () => {
    const commands = [
      "write -P 0x11 0 64k",
      "write -P 0x22 1000 3000",
      "write -f -P 0x33 70001 5",
      "write -z 8k 4k",
      "write -z -u 16k 1234",
      "discard 32k 8k",
      "flush",
      "read -P 0x11 0 1000",
      "read -P 0x22 1000 3000",
      "read -P 0x11 4000 4192",
      "read -P 0 8k 4k",
      "read -P 0 16k 1234",
      "read -P 0x11 17618 100",
      "read -P 0 32k 8k",
      "read -P 0x33 70001 5",
    ];
    const output = await run("qemu-io", "-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri("bytes"));
    assert.doesNotMatch(output, /failed|error/i);
  });

  test("qemu-io trims and zeroes gigabytes of a huge export at once", async () => {
    const commands = ["write -P 7 8T 1M", "discard 8T 2147483136", "read -P 0 8T 1M", "write -z 1T 2147483136"];
    const output = await run("qemu-io", "-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri("huge"));
    assert.doesNotMatch(output, /failed|error/i);
  });
});

describe("fio", () => {
  const common = [
    "--ioengine=nbd",
    "--size=48m",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--randrepeat=1",
    "--output-format=terse",
  ];

  test("random writes of mixed sizes verify at depth 32", async () => {
    for (const name of ["plain", "bytes"]) {
      const parameters = ["--name=mixed", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=32", `--uri=${uri(name)}`];
      await run("fio", ...common, ...parameters);
    }
  });

  test("large sequential writes verify, with flushes and trims between", async () => {
    await run(
      "fio",
      ...common,
      "--name=large",
      "--rw=write",
      "--bs=1m",
      "--iodepth=8",
      "--fsync=4",
      `--uri=${uri("bytes")}`,
    );
    await run(
      "fio",
      "--ioengine=nbd",
      "--name=trims",
      "--rw=randtrim",
      "--bs=64k",
      "--size=48m",
      `--uri=${uri("plain")}`,
    );
  });

  test("several jobs on connections of their own do not disturb each other", async () => {
    const parameters = [
      "--name=jobs",
      "--numjobs=3",
      "--offset_increment=16m",
      "--rw=randrw",
      "--bs=4k",
      "--iodepth=16",
    ];
    await run("fio", ...common, ...parameters, "--size=12m", `--uri=${uri("plain")}`);
  });
});
