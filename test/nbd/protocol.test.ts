/** The wire format against bytes written down from the protocol document, and against itself. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  RequestHeader,
  decodeInfoRequest,
  decodeOptionHeader,
  encodeExportNameAnswer,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoName,
  encodeListedExport,
  encodeOptionReply,
  encodeSimpleReply,
  transmissionFlags,
} from "../../src/nbd/protocol.ts";
import { infoData, option, request } from "./frames.ts";

test("what the server sends has the bytes of the document", () => {
  const golden: [string, Buffer, string][] = [
    ["greeting", encodeGreeting(3), "4e42444d41474943 49484156454f5054 0003"],
    [
      "option reply",
      encodeOptionReply(7, 0x80000006, Buffer.from("no")),
      "0003e889045565a9 00000007 80000006 00000002 6e6f",
    ],
    ["acknowledgement", encodeOptionReply(3, 1, Buffer.alloc(0)), "0003e889045565a9 00000003 00000001 00000000"],
    ["listed export", encodeListedExport(Buffer.from("vol")), "00000003 766f6c"],
    ["info export", encodeInfoExport(2 ** 44, 0x16d), "0000 0000100000000000 016d"],
    ["info name", encodeInfoName(Buffer.from("vol")), "0001 766f6c"],
    [
      "info block size",
      encodeInfoBlockSize({ minimum: 1, preferred: 4096, maximum: 33554432 }),
      "0003 00000001 00001000 02000000",
    ],
    ["export name answer", encodeExportNameAnswer(4096, 1, false), "0000000000001000 0001"],
    ["padded answer", encodeExportNameAnswer(4096, 1, true), `0000000000001000 0001 ${"00".repeat(124)}`],
  ];
  for (const [name, bytes, expected] of golden) assert.equal(bytes.toString("hex"), expected.replaceAll(" ", ""), name);
});

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

test("a simple reply has the bytes of the document and touches nothing else", () => {
  const target = Buffer.alloc(20, 0xff);
  encodeSimpleReply(viewOf(target), 2, 28, 0x01020304, 0xfffefdfc);
  assert.equal(target.toString("hex"), `ffff${"67446698"}0000001c01020304fffefdfc${"ffff"}`);
});

test("the flags offered are those the device can honour", () => {
  assert.equal(transmissionFlags({ readOnly: false }), 0b1_0110_1101);
  assert.equal(transmissionFlags({ readOnly: true }), 0b1_0000_1111);
});

test("a request decodes to the fields it was made of", () => {
  const u32 = fc.nat(0xffffffff);
  fc.assert(
    fc.property(
      u32,
      fc.nat(65535),
      fc.nat(65535),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.maxSafeNat(),
      u32,
      (...fields) => {
        const [magic, flags, type, cookie, offset, length] = fields;
        const header = new RequestHeader();
        const bytes = request({ magic, flags, type, cookie, offset: BigInt(offset), length });
        header.decode(viewOf(Buffer.concat([Buffer.alloc(3), bytes])), 3);
        assert.deepEqual([header.magic, header.flags, header.type, header.lengthBytes], [magic, flags, type, length]);
        assert.equal((BigInt(header.cookieHigh) << 32n) | BigInt(header.cookieLow), cookie);
        assert.equal(header.offset, offset);
      },
    ),
  );
});

test("an option and its information request decode to what they were made of", () => {
  const header = decodeOptionHeader(option(7, Buffer.alloc(9)));
  assert.deepEqual(header, { magic: 0x49484156454f5054n, option: 7, lengthBytes: 9 });
  fc.assert(
    fc.property(fc.string({ maxLength: 300 }), fc.array(fc.nat(65535), { maxLength: 20 }), (name, requested) => {
      const decoded = decodeInfoRequest(infoData(name, requested));
      assert.deepEqual(decoded?.requested, requested);
      assert.equal(decoded?.name.toString("hex"), Buffer.from(name).toString("hex"));
    }),
  );
});

test("an information request of arbitrary bytes decodes to nothing or to exactly its bytes", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      const decoded = decodeInfoRequest(Buffer.from(bytes));
      if (decoded === undefined) return;
      assert.equal(6 + decoded.name.length + 2 * decoded.requested.length, bytes.length);
    }),
  );
});
