/** The table of what may be formatted: every row, both ways of access. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { status as code } from "@grpc/grpc-js";
import { isKind } from "../../src/base/errors.ts";
import { decideFormat, type DeviceContent, type FormatDecision } from "../../src/csi/staged-filesystem.ts";
import { formatTable } from "../../src/csi/mount-tables.ts";
import { CsiError } from "../../src/csi/status.ts";
import { unvisited, watchTables } from "../recovery/visits.ts";

const visited = watchTables();

const signatures = [undefined, "ext4", "xfs", "btrfs", "table:gpt", "ambiguous", "unknown"];

function decide(content: DeviceContent, readOnly: boolean): FormatDecision | "refuse" | "corrupt" {
  try {
    return decideFormat(content, { type: "ext4", readOnly });
  } catch (error) {
    if (error instanceof CsiError && error.code === code.FAILED_PRECONDITION) return "refuse";
    assert.ok(isKind(error, "corrupt"));
    return "corrupt";
  }
}

test("a volume that was never written is formatted, unless it is read-only or something is found on it", () => {
  const empty = { neverWritten: true, hasMarker: false, signature: undefined };
  assert.equal(decide(empty, false), "make");
  assert.equal(decide(empty, true), "refuse");
  for (const signature of signatures.slice(1)) assert.equal(decide({ ...empty, signature }, false), "corrupt");
});

test("a written volume is formatted only with the marker of an unfinished mkfs", () => {
  for (const signature of signatures) {
    const marked = { neverWritten: false, hasMarker: true, signature };
    assert.equal(decide(marked, false), "make again");
    assert.equal(decide(marked, true), "refuse");
  }
});

test("a written volume without a marker is used where it holds the wanted filesystem, and never formatted", () => {
  for (const signature of signatures) {
    for (const readOnly of [false, true]) {
      const written = { neverWritten: false, hasMarker: false, signature };
      assert.equal(decide(written, readOnly), signature === "ext4" ? "use" : "refuse");
    }
  }
});

test("every row of the table was visited by the tests above", () => {
  assert.deepEqual(unvisited(formatTable, visited), []);
});
