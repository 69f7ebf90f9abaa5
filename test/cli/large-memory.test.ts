/** Large buffers ask for huge pages, in the process that serves too; where the kernel has none, nothing else changes. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import type { Log } from "../../src/base/log.ts";
import { nullLog } from "../../src/base/log.ts";
import { inHugePages } from "../../src/cli/large-memory.ts";
import { loadLibc, SystemCallError } from "../../src/nbd/kernel/libc.ts";
import { Playground, run } from "./program.ts";

const mib = 1024 * 1024;
/** Of this kernel, not of the machine's settings: those may still leave them out. */
const kernelHasHugePages = existsSync("/sys/kernel/mm/transparent_hugepage");

/** Bytes of a process's memory for which huge pages were asked (VmFlags "hg" in proc(5)). */
async function askedBytes(pid: number | "self"): Promise<number> {
  const areas = (await readFile(`/proc/${pid}/smaps`, "utf8")).split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  const asked = areas.filter((area) => /^VmFlags:.*\bhg\b/m.test(area));
  return asked.reduce((sum, area) => sum + Number(/^Size:\s+(\d+) kB$/m.exec(area)?.[1]) * 1024, 0);
}

test("a large buffer stands in huge pages, but for the pages that it shares", async () => {
  const { preferHugePages } = await loadLibc();
  const before = await askedBytes("self");
  const memory = inHugePages(preferHugePages, nullLog)(8 * mib);
  assert.equal(memory.length, 8 * mib);
  const asked = (await askedBytes("self")) - before;
  if (kernelHasHugePages) assert.ok(asked >= 8 * mib - 8192 && asked <= 8 * mib, `${asked} bytes asked for`);
  else assert.throws(() => preferHugePages(memory), { code: "EINVAL" });
  memory.fill(1);
});

test("a kernel without them is asked once, and the buffers come all the same", () => {
  let calls = 0;
  const lines: string[] = [];
  const refusing = (): never => {
    calls += 1;
    throw new SystemCallError("madvise", "EINVAL");
  };
  const log = { ...nullLog, debug: (message: string) => lines.push(message) } as unknown as Log;
  const allocate = inHugePages(refusing, log);
  for (let round = 0; round < 3; round += 1) assert.equal(allocate(mib).length, mib);
  assert.equal(calls, 1);
  assert.deepEqual(lines, ["no huge pages: random reads take more processor time"]);
});

test("a server that uploads has its buffers there", async (context) => {
  const ground = await Playground.make();
  context.after(() => ground.remove());
  const imageBytes = 24 * mib;
  await writeFile(ground.path("image"), Buffer.alloc(imageBytes, 7));
  assert.equal((await ground.volume("create", "large", String(imageBytes))).code, 0);
  const server = await ground.serve();
  const copied = await run("nbdcopy", ["--flush", ground.path("image"), ground.uri("large")]);
  assert.equal(copied.code, 0, copied.stderr);
  const asked = await askedBytes(server.pid);
  assert.equal(asked >= imageBytes, kernelHasHugePages, `${asked} bytes asked for`);
  assert.equal(await server.stop("SIGTERM"), 0);
});
