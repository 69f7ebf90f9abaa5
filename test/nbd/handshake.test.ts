/** The negotiation: every option, every way to end it, and what no client can do to it. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { OperationError } from "../../src/base/errors.ts";
import { MemoryDevice } from "../../src/block/memory-device.ts";
import type { ExportSource } from "../../src/nbd/export-source.ts";
import { performHandshake } from "../../src/nbd/handshake.ts";
import { clientFlags, infoData, option, optionReplies } from "./frames.ts";
import { MemoryConnection, settled } from "./memory-connection.ts";

const EXPORT_NAME = 1;
const ABORT = 2;
const LIST = 3;
const INFO = 6;
const GO = 7;
const UNSUPPORTED = 0x80000001;
const INVALID = 0x80000003;
const UNKNOWN = 0x80000006;
const MIB = 1024 * 1024;

class Exports implements ExportSource {
  open_ = 0;
  opened: string[] = [];

  list(): string[] {
    return ["alpha", "beta"];
  }

  async open(name: string) {
    this.opened.push(name);
    if (name === "busy") throw new OperationError("in-use", "another node owns the volume");
    if (name === "away") throw new OperationError("unavailable", "the store does not answer");
    if (!["alpha", "beta", "ü", "n".repeat(4096)].includes(name)) return undefined;
    this.open_ += 1;
    const device = new MemoryDevice({ sizeBytes: MIB, readOnly: name === "beta" });
    return { device, release: () => void (this.open_ -= 1) };
  }
}

async function negotiate(pieces: Buffer[], end = false) {
  const connection = new MemoryConnection();
  const exports = new Exports();
  const result = performHandshake(connection, exports);
  for (const piece of pieces) {
    connection.feed(piece);
    await settled();
  }
  if (end) connection.feedEnd();
  const negotiated = await Promise.race([result, settled().then(() => "waiting" as const)]);
  return { connection, exports, result: negotiated, answers: connection.sent.subarray(18) };
}

const fixed = clientFlags(3);

function typesOf(answers: Buffer): number[] {
  return optionReplies(answers).map(({ type }) => type);
}

describe("options", () => {
  test("GO answers size, flags and block sizes, then the transmission begins with the bytes that follow", async () => {
    const { connection, exports, result, answers } = await negotiate([
      Buffer.concat([fixed, option(GO, infoData("alpha", [1, 3])), Buffer.from("the first request")]),
    ]);
    assert.equal(connection.sent.subarray(0, 18).toString("hex"), "4e42444d4147494349484156454f50540003");
    const [exported, name, sizes, acknowledged] = optionReplies(answers);
    assert.equal(exported.data.toString("hex"), "00000000000000100000016d");
    assert.equal(name.data.toString("hex"), `0001${Buffer.from("alpha").toString("hex")}`);
    assert.equal(sizes.data.toString("hex"), "0003000010000000100002000000");
    assert.equal(acknowledged.type, 1);
    assert.ok(result !== undefined && result !== "waiting");
    assert.equal(result.leftover.toString(), "the first request");
    assert.equal(result.name, "alpha");
    assert.equal(connection.paused, true);
    assert.equal(exports.open_, 1);
  });

  test("INFO leaves the negotiation open, and a GO after it opens nothing anew", async () => {
    const { exports, result, answers } = await negotiate([
      fixed,
      option(INFO, infoData("beta")),
      option(GO, infoData("beta")),
    ]);
    assert.deepEqual(typesOf(answers), [3, 3, 1, 3, 3, 1]);
    assert.equal(optionReplies(answers)[0].data.readUInt16BE(10), 0b1_0000_1111);
    assert.ok(result !== undefined && result !== "waiting");
    assert.deepEqual(exports.opened, ["beta"]);
  });

  test("what INFO opened is released when the client asks for another or goes away", async () => {
    const { exports, result } = await negotiate(
      [fixed, option(INFO, infoData("beta")), option(INFO, infoData("alpha"))],
      true,
    );
    assert.equal(result, undefined);
    assert.deepEqual(exports.opened, ["beta", "alpha"]);
    assert.equal(exports.open_, 0);
  });

  test("EXPORT_NAME answers size and flags, padded unless NO_ZEROES was agreed on", async () => {
    for (const [flags, length] of [
      [0, 134],
      [1, 134],
      [3, 10],
    ]) {
      const { result, answers } = await negotiate([clientFlags(flags), option(EXPORT_NAME, Buffer.from("alpha"))]);
      assert.equal(answers.length, length);
      assert.equal(answers.subarray(0, 10).toString("hex"), "0000000000100000016d");
      assert.ok(result !== undefined && result !== "waiting");
    }
  });

  test("LIST names the exports and ABORT ends with an acknowledgement", async () => {
    const { connection, result, answers } = await negotiate([fixed, option(LIST), option(ABORT)]);
    assert.deepEqual(typesOf(answers), [2, 2, 1, 1]);
    assert.equal(optionReplies(answers)[1].data.toString("hex"), `00000004${Buffer.from("beta").toString("hex")}`);
    assert.equal(result, undefined);
    assert.equal(connection.ended, true);
  });

  test("options that are not built are unsupported, their data is skipped, the next option is in step", async () => {
    const pieces = [
      fixed,
      ...[4, 5, 8, 9, 10, 11, 0xffffffff].map((number) => option(number, Buffer.alloc(100_000, 0x49))),
    ];
    const { result, answers } = await negotiate([...pieces, option(GO, infoData("alpha"))]);
    assert.deepEqual(typesOf(answers), [...Array.from({ length: 7 }, () => UNSUPPORTED), 3, 3, 1]);
    assert.ok(result !== undefined && result !== "waiting");
  });
});

describe("refusals", () => {
  test("exports that do not exist or cannot be opened answer so, and the client may ask on", async () => {
    const names = ["", "../../etc/passwd", "busy", "away", "alpha"];
    const { result, answers } = await negotiate([fixed, ...names.map((name) => option(GO, infoData(name)))]);
    assert.deepEqual(typesOf(answers), [UNKNOWN, UNKNOWN, 0x80000002, 0x80000004, 3, 3, 1]);
    assert.equal(optionReplies(answers)[2].data.toString(), "another node owns the volume");
    assert.ok(result !== undefined && result !== "waiting");
  });

  test("names may have 4096 bytes and any UTF-8, but no more, no NUL and nothing else", async () => {
    const cases: [Buffer, number][] = [
      [Buffer.from("n".repeat(4096)), 3],
      [Buffer.from("n".repeat(4097)), INVALID],
      [Buffer.from("ü"), 3],
      [Buffer.from([0x76, 0xff, 0xfe]), INVALID],
      [Buffer.from("a\0b"), INVALID],
    ];
    for (const [name, first] of cases) {
      const { answers } = await negotiate([fixed, option(INFO, infoData(name))]);
      assert.equal(typesOf(answers)[0], first, `${name.subarray(0, 8).toString("hex")} ${name.length}`);
    }
  });

  test("data whose lengths contradict each other is invalid and leaves both sides in step", async () => {
    const tooLongName = Buffer.from([0xff, 0xff, 0xff, 0xff, 0, 0]);
    const missingTypes = Buffer.from([0, 0, 0, 0, 0, 9]);
    const pieces = [tooLongName, missingTypes, Buffer.alloc(0), Buffer.alloc(5)].map((data) => option(GO, data));
    const { result, answers } = await negotiate([
      fixed,
      ...pieces,
      option(LIST, Buffer.alloc(1)),
      option(GO, infoData("alpha")),
    ]);
    assert.deepEqual(typesOf(answers), [INVALID, INVALID, INVALID, INVALID, INVALID, 3, 3, 1]);
    assert.ok(result !== undefined && result !== "waiting");
  });

  test("a list that cannot be made answers so, and the client may ask on", async () => {
    const connection = new MemoryConnection();
    const failing: ExportSource = {
      list: () => Promise.reject(new OperationError("unavailable", "the store does not answer")),
      open: async () => undefined,
    };
    const result = performHandshake(connection, failing);
    connection.feed(Buffer.concat([fixed, option(LIST), option(ABORT)]));
    assert.equal(await result, undefined);
    assert.deepEqual(typesOf(connection.sent.subarray(18)), [0x80000004, 1]);
  });

  test("what leaves no step to stay in closes the connection", async () => {
    const cases: Buffer[][] = [
      [clientFlags(4)],
      [clientFlags(0x80000001)],
      [fixed, Buffer.alloc(16, 0x41)],
      [fixed, Buffer.concat([option(99).subarray(0, 12), Buffer.from([0xff, 0xff, 0xff, 0xff])])],
      [fixed, option(EXPORT_NAME, Buffer.from("../../etc/passwd"))],
      [fixed, option(EXPORT_NAME, Buffer.from("busy"))],
      [fixed, option(EXPORT_NAME, Buffer.alloc(5000, 0x61))],
      [clientFlags(0), option(LIST)],
      [fixed, Buffer.concat(Array.from({ length: 300 }, () => option(99)))],
    ];
    for (const [index, pieces] of cases.entries()) {
      const { connection, exports, result } = await negotiate(pieces);
      assert.equal(result, undefined, `case ${index}`);
      assert.equal(connection.destroyed, true, `case ${index}`);
      assert.equal(exports.open_, 0);
    }
  });

  test("a client that goes away at any byte leaves nothing open", async () => {
    const bytes = Buffer.concat([fixed, option(INFO, infoData("alpha")), option(LIST)]);
    for (let length = 0; length <= bytes.length; length += 1) {
      const { exports, result } = await negotiate([bytes.subarray(0, length)], true);
      assert.equal(result, undefined);
      assert.equal(exports.open_, 0);
    }
  });
});

test("a negotiation split at every byte comes to the same end", async () => {
  const bytes = Buffer.concat([
    fixed,
    option(LIST),
    option(77, Buffer.alloc(9)),
    option(GO, infoData("alpha", [3])),
    Buffer.from("rest"),
  ]);
  const whole = await negotiate([bytes]);
  for (let at = 1; at < bytes.length; at += 1) {
    const split = await negotiate([bytes.subarray(0, at), bytes.subarray(at)]);
    assert.ok(split.answers.equals(whole.answers), `split at ${at}`);
    assert.ok(split.result !== undefined && split.result !== "waiting");
    assert.ok("rest".startsWith(split.result.leftover.toString()));
  }
});

test("garbage after the greeting neither crashes the server nor leaves an export open", async () => {
  const start = Buffer.concat([fixed, option(INFO, infoData("alpha")), option(GO, infoData("beta", [1, 2]))]);
  const changes = fc.array(fc.tuple(fc.nat(start.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(changes, fc.uint8Array({ maxLength: 40 }), async (mutations, tail) => {
      const bytes = Buffer.concat([start, Buffer.from(tail)]);
      for (const [at, value] of mutations) bytes[at] = value;
      const { exports, result } = await negotiate([bytes], true);
      assert.ok(exports.open_ === (result === undefined ? 0 : 1));
    }),
    { numRuns: 500, seed: 4 },
  );
});
