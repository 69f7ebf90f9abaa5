/** Programs run without a shell, within their deadline, and are gone afterwards. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isKind } from "../../src/base/errors.ts";
import { mustFindProgram, mustRunProgram, runProgram } from "../../src/host/process.ts";

const timeoutMs = 10_000;

test("arguments reach the program as they are, whatever a shell would make of them", async () => {
  const hostile = ["$(touch /tmp/never)", "`id`", "a b", "; rm", "*", "\n", "--", "'"];
  const { stdout } = await runProgram("printf", ["%s\\0", ...hostile], { timeoutMs });
  assert.deepEqual(stdout.toString().split("\0").slice(0, -1), hostile);
});

test("the environment holds PATH and LC_ALL alone", async () => {
  const { stdout } = await runProgram("env", [], { timeoutMs });
  const names = stdout
    .toString()
    .trim()
    .split("\n")
    .map((line) => line.split("=")[0]);
  assert.deepEqual(names.toSorted(), ["LC_ALL", "PATH"]);
});

test("the exit status and both outputs come back", async () => {
  const result = await runProgram("sh", ["-c", "echo out; echo err >&2; exit 7"], { timeoutMs });
  assert.equal(result.status, 7);
  assert.equal(result.stdout.toString(), "out\n");
  assert.equal(result.stderr, "err\n");
});

test("input is given and the program sees its end", async () => {
  const { stdout } = await runProgram("cat", [], { timeoutMs, input: Buffer.from("a\0b") });
  assert.deepEqual(stdout, Buffer.from("a\0b"));
});

test("a failed run is an error with the last words of the program on one line", async () => {
  await assert.rejects(
    mustRunProgram("sh", ["-c", "printf 'first\\nno such device' >&2; exit 3"], { timeoutMs }),
    (error) => isKind(error, "unavailable") && /first no such device.* status=3$/.test(error.message),
  );
});

test("more output than is kept does not disturb the program", async () => {
  const { status, stdout } = await runProgram("head", ["-c", "1000000", "/dev/zero"], { timeoutMs });
  assert.equal(status, 0);
  assert.equal(stdout.length, 64 * 1024);
});

test("at the deadline the program and its children are killed", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-process-"));
  context.after(() => rm(directory, { recursive: true }));
  const script = `sleep 1000 & echo $! > ${directory}/child; sleep 1000; :`;
  await assert.rejects(
    runProgram("sh", ["-c", script], { timeoutMs: 300 }),
    (error) => isKind(error, "unavailable") && error.message.includes("deadline"),
  );
  await untilDead(Number(await readFile(`${directory}/child`, "utf8")));
});

test("a program that leaves a child behind with its output open still ends, and the child with it", async () => {
  const { status, stdout } = await runProgram("sh", ["-c", "sleep 1000 & echo $!"], { timeoutMs });
  assert.equal(status, 0);
  await untilDead(Number(stdout.toString()));
});

/** A killed process may stay a while as a zombie, which has no command line any more. */
async function untilDead(pid: number): Promise<void> {
  for (;;) {
    const commandLine = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (commandLine === "") return;
    await sleep(10);
  }
}

test("a program that is not in the known directories is an error that names it", () => {
  assert.throws(
    () => mustFindProgram("s3block-no-such-program"),
    (error) => isKind(error, "unavailable") && error.message.includes("s3block-no-such-program"),
  );
  assert.equal(mustFindProgram("sh").endsWith("/sh"), true);
});
