/** The oracle finds what it is there to find, and accepts what may be. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Line, Oracle, OracleError } from "./oracle.ts";

const BLOCKS = 8;

function image(versions: Record<number, number>): Int32Array {
  const blocks = new Int32Array(BLOCKS);
  for (const [block, version] of Object.entries(versions)) blocks[Number(block)] = version;
  return blocks;
}

/** An owner on "a", of a volume that is all zeroes. */
function owned(durability: "s3" | "local" = "s3"): { oracle: Oracle; line: Line } {
  const oracle = new Oracle(BLOCKS, durability);
  oracle.started(1, "a");
  return { oracle, line: oracle.opened("a", 1, image({}), "none") };
}

/** A write that was answered; its version. */
function written(oracle: Oracle, line: Line, lba: number, blocks = 1): number {
  const operation = oracle.issue(line, lba, blocks, false);
  oracle.answered(line, operation, false);
  return operation.version;
}

function flush(oracle: Oracle, line: Line): void {
  oracle.endFlush(line, oracle.beginFlush(line));
}

function reopened(oracle: Oracle, node: string, seen: Int32Array, risk: "none" | "unsynced" = "none"): Line {
  oracle.started(oracle.main.epoch + 1, node);
  return oracle.opened(node, oracle.main.epoch + 1, seen, risk);
}

test("an acknowledged flush is held wherever the volume is opened, what came after it may be lost", () => {
  const { oracle, line } = owned();
  const first = written(oracle, line, 1);
  flush(oracle, line);
  const second = written(oracle, line, 2);
  assert.throws(() => reopened(oracle, "b", image({ 2: second })), OracleError);
  reopened(oracle, "b", image({ 1: first }));
});

test("the death of a process loses no acknowledged write, a loss of power may", () => {
  const { oracle, line } = owned();
  const first = written(oracle, line, 1);
  const second = written(oracle, line, 1);
  assert.throws(() => reopened(oracle, "a", image({ 1: first })), OracleError);
  reopened(oracle, "a", image({ 1: first }), "unsynced");
  assert.throws(() => reopened(oracle, "a", image({ 1: second })), OracleError, "what was lost came back");
});

test("a mixture of two moments is found: a write without one that was answered before it, or a part of one", () => {
  const { oracle, line } = owned();
  written(oracle, line, 1);
  const second = written(oracle, line, 4, 2);
  assert.throws(() => reopened(oracle, "b", image({ 4: second, 5: second })), OracleError);
  assert.throws(() => reopened(oracle, "b", image({ 1: 1, 4: second })), OracleError);
  reopened(oracle, "b", image({ 1: 1, 4: second, 5: second }));
});

test("writes that were in flight together may be held in any order", () => {
  const { oracle, line } = owned();
  oracle.issue(line, 1, 1, false);
  const second = oracle.issue(line, 2, 1, false);
  reopened(oracle, "b", image({ 2: second.version }));
});

test("durability local: a flush is held on its node alone", () => {
  const { oracle, line } = owned("local");
  written(oracle, line, 1);
  flush(oracle, line);
  assert.throws(() => reopened(oracle, "a", image({}), "unsynced"), OracleError);
  reopened(oracle, "b", image({}));
});

test("a former owner may not acknowledge a flush of what its successor does not have", () => {
  const { oracle, line } = owned();
  const first = written(oracle, line, 1);
  flush(oracle, line);
  reopened(oracle, "b", image({ 1: first }));
  flush(oracle, line);
  written(oracle, line, 2);
  assert.throws(() => flush(oracle, line), OracleError);
});

test("a former owner may say that zeroes over zeroes which S3 holds are durable, and no others", () => {
  for (const [isHeld, isOver] of [
    [true, true],
    [false, true],
    [true, false],
  ]) {
    const { oracle, line } = owned();
    const first = written(oracle, line, 3);
    flush(oracle, line);
    const second = oracle.issue(line, 3, 1, false);
    if (isOver) oracle.abandoned(second);
    oracle.answered(line, oracle.issue(line, 2, 4, true), false);
    reopened(oracle, "b", isHeld ? image({}) : image({ 3: first }));
    const again = oracle.issue(line, 2, 4, true);
    if (isHeld && isOver) oracle.answered(line, again, true);
    else assert.throws(() => oracle.answered(line, again, true), OracleError);
  }
});

test("a read sees the newest answered version, or one that was written meanwhile, and nothing else", () => {
  const { oracle, line } = owned();
  const first = written(oracle, line, 3);
  const read = oracle.beginRead(line, 3, 1);
  const second = written(oracle, line, 3);
  for (const version of [first, second]) {
    oracle.endRead(line, read, [version]);
  }
  assert.throws(() => oracle.endRead(line, read, [0]), OracleError);
  assert.throws(() => oracle.endRead(line, oracle.beginRead(line, 3, 1), [first]), OracleError);
});

test("blocks that read as zero are explained by whichever zeroing there was", () => {
  const { oracle, line } = owned();
  written(oracle, line, 0, 4);
  flush(oracle, line);
  const zeroed = oracle.issue(line, 2, 2, true);
  reopened(oracle, "b", image({ 0: 1, 1: 1 }));
  assert.equal(zeroed.durable, true);
});

test("a write that went with the zeroes over it, or did not, is no proof that the volume was ever written", () => {
  const lost = owned();
  written(lost.oracle, lost.line, 1);
  lost.oracle.answered(lost.line, lost.oracle.issue(lost.line, 0, 4, true), false);
  flush(lost.oracle, reopened(lost.oracle, "a", image({}), "unsynced"));
  assert.equal(lost.oracle.everWritten, false);
  const kept = owned();
  written(kept.oracle, kept.line, 1);
  kept.oracle.answered(kept.line, kept.oracle.issue(kept.line, 0, 4, true), false);
  flush(kept.oracle, reopened(kept.oracle, "a", image({}), "none"));
  assert.equal(kept.oracle.everWritten, true, "the death of a process loses neither");
});
