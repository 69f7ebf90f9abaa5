/** Log lines: shape, levels, and that no secret gets into one. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { OperationError } from "../../src/base/errors.ts";
import { createLogger } from "../../src/observability/logger.ts";
import type { LogLevel } from "../../src/observability/logger.ts";
import { Redactor } from "../../src/observability/redaction.ts";

function capture(level: LogLevel = "debug") {
  const lines: string[] = [];
  const redactor = new Redactor();
  const destination = { write: (line: string) => void lines.push(line) };
  const log = createLogger({ level, fields: { process: "test" }, redactor, destination });
  const last = (): Record<string, unknown> => JSON.parse(lines.at(-1) ?? "{}") as Record<string, unknown>;
  return { log, lines, last, redactor };
}

test("a line is one JSON object with level, time, message, and the fields of its logger", () => {
  const { log, lines, last } = capture();
  log.child({ volumeId: "vol-1" }).warn("something happened", { operation: "attach", bytes: 12n });
  assert.equal(lines.length, 1);
  assert.ok(lines[0].endsWith("}\n"));
  const { time, ...rest } = last();
  assert.ok(!Number.isNaN(Date.parse(String(time))));
  assert.deepEqual(rest, {
    level: "warn",
    process: "test",
    volumeId: "vol-1",
    operation: "attach",
    bytes: "12",
    message: "something happened",
  });
});

test("lines below the level are not written", () => {
  const { log, lines } = capture("warn");
  log.debug("no");
  log.info("no");
  log.warn("yes");
  log.error("yes");
  assert.equal(lines.length, 2);
});

test("values under telling keys are blanked at any depth", () => {
  const { log, lines } = capture();
  log.info("x", {
    secrets: { a: "canary" },
    options: { location: { secretAccessKey: "canary" }, list: [{ sessionToken: "canary" }] },
    Authorization: "canary",
    accessKeyId: "canary",
  });
  log.child({ password: "canary" }).info("y");
  assert.equal(lines.join("").includes("canary"), false);
  assert.equal(lines.join("").match(/\[redacted\]/g)?.length, 6);
});

test("a known secret is blanked wherever it stands: message, fields, errors and their causes", () => {
  const { log, lines, redactor } = capture();
  redactor.addSecret("canary-secret");
  redactor.addSecret("short");
  const cause = new Error("server said: canary-secret is wrong");
  log.error("failed for canary-secret", {
    error: new OperationError("invalid", "refused", { cause }),
    list: ["a canary-secret b"],
    short: "a short word stays",
  });
  assert.equal(lines.join("").includes("canary"), false);
  assert.match(lines[0], /server said: \[redacted\] is wrong/);
  assert.match(lines[0], /a short word stays/);
});

test("a secret that begins with another leaves nothing of itself", () => {
  const redactor = new Redactor();
  for (const secret of ["canary-key", "canary-key-and-more", "canary-key"]) redactor.addSecret(secret);
  assert.equal(redactor.redactText("a canary-key-and-more b canary-key"), "a [redacted] b [redacted]");
});

test("an error is logged without its stack", () => {
  const { log, last } = capture();
  log.error("x", { error: new OperationError("busy", "try again", { context: { volumeId: "v" } }) });
  assert.equal(last().error, "try again volumeId=v");
});

test("what cannot be shown does not keep a line from being written", () => {
  const { log, lines } = capture();
  const loop: Record<string, unknown> = {};
  loop.self = loop;
  const hostile = {
    get value(): string {
      throw new Error("no");
    },
  };
  log.info("loop", { loop });
  log.info("hostile", { hostile });
  log.info("odd", { buffer: Buffer.alloc(5), set: new Set([1]), call: () => 1, long: "x".repeat(100_000) });
  assert.equal(lines.length, 3);
  assert.match(lines[2], /"buffer":"\[5 bytes\]"/);
  assert.ok(lines[2].length < 10_000);
});

test("a field can forge neither a line nor a level", () => {
  fc.assert(
    fc.property(fc.string(), fc.dictionary(fc.string(), fc.anything()), (message, fields) => {
      const { log, lines } = capture();
      log.info(message, fields);
      assert.equal(lines.length, 1);
      assert.equal(lines[0].split("\n").length, 2);
      JSON.parse(lines[0]);
    }),
  );
});
