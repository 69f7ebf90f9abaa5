/** The guest itself: what a command finds in it, what stays of it, and what it can reach of the machine. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { runInGuest } from "./guest.ts";

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), "guest-test-"));
});
after(() => rmSync(directory, { recursive: true, force: true }));

/** Process ids of this machine whose command line has `text`. */
function processesWith(text: string): string[] {
  return readdirSync("/proc").filter((id) => {
    if (!/^\d+$/.test(id) || Number(id) === process.pid) return false;
    try {
      return readFileSync(join("/proc", id, "cmdline"), "utf8").includes(text);
    } catch {
      return false;
    }
  });
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20));
}

test("a command's status, output and environment come through, and its writes stay in the guest", async () => {
  const inside = join(directory, "inside");
  const pieces: string[] = [];
  const result = await runInGuest({
    command: [
      "sh",
      "-c",
      `echo "$GREETING from $PWD"; echo lost >&2; echo x >${inside}; cat ${inside}; ls /dev/nbd0; exit 7`,
    ],
    environment: { GREETING: "it's me" },
    directory,
    onOutput: (text) => pieces.push(text),
  });
  assert.deepEqual(result, { ...result, status: 7, output: `it's me from ${directory}\nlost\nx\n/dev/nbd0\n` });
  assert.equal(pieces.join(""), result.output);
  assert.ok(!existsSync(inside));
});

test("two guests run at the same time, a shared directory keeps what is written, a daemon holds up nothing", async () => {
  const results = await Promise.all(
    ["one", "two"].map((name) =>
      runInGuest({
        command: [
          "sh",
          "-c",
          `sleep 1000 & echo ${name} >${directory}/${name}; ip -4 addr show lo | grep -c 127.0.0.1`,
        ],
        shares: [directory],
        memoryMib: 512,
      }),
    ),
  );
  assert.deepEqual(
    results.map(({ status, output }) => ({ status, output })),
    [
      { status: 0, output: "1\n" },
      { status: 0, output: "1\n" },
    ],
  );
  assert.equal(readFileSync(join(directory, "one"), "utf8"), "one\n");
  assert.equal(readFileSync(join(directory, "two"), "utf8"), "two\n");
});

test("a command that takes too long is killed, with what it said so far in the error", async () => {
  const run = runInGuest({ command: ["sh", "-c", "echo so far; sleep 1000"], timeoutMs: 4000, memoryMib: 512 });
  await assert.rejects(run, /took longer than 4000 ms[^]*so far/);
});

test("a guest dies with the process that started it, and leaves no file behind", async () => {
  const launcher = fileURLToPath(new URL("guest.ts", import.meta.url));
  const words = [launcher, "--guest", "--memory", "512", "--", "sleep", "1000"];
  const child = spawn(process.execPath, words, {
    stdio: "ignore",
    env: { ...process.env, TMPDIR: directory },
  });
  const isBooted = (): boolean => processesWith(`init=${directory}/s3block-guest-`).length > 0;
  await until(isBooted);
  child.kill("SIGKILL");
  await once(child, "exit");
  await until(() => !isBooted() && !readdirSync(directory).some((name) => name.startsWith("s3block-guest-")));
});
