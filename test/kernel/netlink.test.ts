/** The netlink codec: golden bytes from the kernel's headers, round trips, and arbitrary bytes. */
import assert from "node:assert/strict";
import { endianness } from "node:os";
import { describe, test } from "node:test";
import fc from "fast-check";
import { isKind } from "../../src/base/errors.ts";
import {
  decodeConnected,
  decodeFamily,
  encodeConnect,
  encodeDisconnect,
  encodeGetFamily,
  encodeReconfigure,
} from "../../src/nbd/kernel/nbd-messages.ts";
import {
  decodeAttributes,
  decodeError,
  decodeGeneric,
  decodeMessages,
  encodeAttribute,
  encodeGeneric,
  encodeMessage,
  encodeNested,
  encodeU16,
  encodeU32,
  encodeU64,
  getU16,
  getU32,
} from "../../src/nbd/kernel/netlink.ts";

const hex = (bytes: Buffer): string => (bytes.toString("hex").match(/.{1,8}/g) ?? []).join(" ");
const bytes = fc.uint8Array({ maxLength: 300 }).map((value) => Buffer.from(value));

/** The value, or undefined where the decoder refused it as it must. */
function attempt<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch (error) {
    assert.ok(isKind(error, "corrupt"), String(error));
    return undefined;
  }
}

describe("golden bytes", { skip: endianness() === "BE" && "the golden bytes are little-endian" }, () => {
  test("a message has its length, type, flags, sequence and port", () => {
    const message = { type: 27, flags: 5, sequence: 1, port: 0, payload: Buffer.from("01010000ff", "hex") };
    assert.equal(hex(encodeMessage(message)), "15000000 1b000500 01000000 00000000 01010000 ff000000");
  });

  test("the controller is asked for the family named nbd", () => {
    assert.equal(hex(encodeGetFamily()), "03020000 08000200 6e626400");
  });

  test("connect carries every attribute, each socket nested in an item", () => {
    const message = encodeConnect({
      index: 7,
      fds: [9],
      sizeBytes: 2 ** 30,
      blockSizeBytes: 4096,
      timeoutSeconds: 5,
      deadConnectionTimeoutSeconds: 3600,
      flags: 0x6d,
      backendIdentifier: "s3block:a",
    });
    assert.equal(
      hex(message),
      "01010000 08000100 07000000 0c000200 00000040 00000000 0c000300 00100000 00000000 0c000400 05000000 00000000 " +
        "0c000800 100e0000 00000000 0c000500 6d000000 00000000 0e000a00 7333626c 6f636b3a 61000000 " +
        "10000780 0c000180 08000100 09000000",
    );
  });

  test("reconfigure carries what changes alone, and disconnect the identifier", () => {
    assert.equal(
      hex(encodeReconfigure({ index: 7, fds: [9, 10], backendIdentifier: "a", timeoutSeconds: 5 })),
      "03010000 08000100 07000000 06000a00 61000000 0c000400 05000000 00000000 " +
        "1c000780 0c000180 08000100 09000000 0c000180 08000100 0a000000",
    );
    assert.equal(hex(encodeDisconnect(1048575, "abc")), "02010000 08000100 ffff0f00 08000a00 61626300");
  });
});

describe("round trips", () => {
  test("messages of one datagram are decoded as they were encoded", () => {
    const u16 = fc.nat(0xffff);
    const u32 = fc.nat(0xffffffff);
    const message = fc.record(
      { type: u16, flags: u16, sequence: u32, port: u32, payload: bytes },
      { noNullPrototype: true },
    );
    fc.assert(
      fc.property(fc.array(message, { maxLength: 5 }), (messages) => {
        assert.deepEqual(decodeMessages(Buffer.concat(messages.map(encodeMessage))), messages);
      }),
    );
  });

  test("attributes are decoded as they were encoded", () => {
    const attribute = fc.record({ type: fc.nat(0x3fff), value: bytes }, { noNullPrototype: true });
    fc.assert(
      fc.property(fc.nat(255), fc.nat(255), fc.array(attribute, { maxLength: 5 }), (command, version, attributes) => {
        const encoded = attributes.map(({ type, value }) => encodeAttribute(type, value));
        assert.deepEqual(decodeGeneric(encodeGeneric(command, version, encoded)), { command, version, attributes });
      }),
    );
  });

  test("numbers are found by their type, and only in their own size", () => {
    const attributes = decodeAttributes(Buffer.concat([encodeU16(1, 513), encodeU32(2, 0x80000001), encodeU64(3, 7n)]));
    assert.equal(getU16(attributes, 1), 513);
    assert.equal(getU32(attributes, 2), 0x80000001);
    assert.equal(getU32(attributes, 4), undefined);
    assert.throws(
      () => getU32(attributes, 3),
      (error) => isKind(error, "corrupt"),
    );
    const [nested] = decodeAttributes(encodeNested(7, [encodeU16(1, 2)]));
    assert.equal(getU16(decodeAttributes(nested.value), 1), 2);
  });

  test("an answer without what was asked for is refused", () => {
    const payload = encodeGeneric(1, 1, [encodeU32(9, 1)]);
    assert.throws(
      () => decodeConnected(payload),
      (error) => isKind(error, "corrupt"),
    );
    assert.throws(
      () => decodeFamily(payload),
      (error) => isKind(error, "corrupt"),
    );
  });
});

describe("arbitrary bytes", () => {
  test("no decoder reads beyond them or fails otherwise than as corrupt", () => {
    fc.assert(
      fc.property(bytes, (input) => {
        const messages = attempt(() => decodeMessages(input)) ?? [];
        for (const message of messages) attempt(() => decodeGeneric(message.payload));
        attempt(() => decodeError(input));
        attempt(() => decodeConnected(input));
        attempt(() => decodeFamily(input));
      }),
      { numRuns: 2000 },
    );
  });

  test("a changed byte of a good message is decoded or refused", () => {
    const payload = encodeConnect({
      index: undefined,
      fds: [3, 4],
      sizeBytes: 4096,
      blockSizeBytes: 512,
      timeoutSeconds: 1,
      deadConnectionTimeoutSeconds: 1,
      flags: 1,
      backendIdentifier: "x",
    });
    const good = encodeMessage({ type: 20, flags: 5, sequence: 1, port: 0, payload });
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), fc.nat(good.length), (at, value, length) => {
        const input = Buffer.from(good.subarray(0, length));
        if (at < length) input[at] = value;
        for (const message of attempt(() => decodeMessages(input)) ?? []) {
          for (const { value: inner } of attempt(() => decodeGeneric(message.payload))?.attributes ?? []) {
            attempt(() => decodeAttributes(inner));
          }
        }
      }),
      { numRuns: 2000 },
    );
  });
});
