/** Bodies that an S3 server announces or sends, and that no object of ours can be: no memory is taken for them. */
import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { gather } from "../../src/store/s3-transfer.ts";

const isCorrupt = (error: unknown): boolean => isKind(error, "corrupt");

test("an announced body of 3 GB, or of 2^40 bytes, is corrupt before any memory is taken", async () => {
  const before = process.memoryUsage().external;
  for (const length of [3_000_000_000, 2 ** 40, Number.MAX_SAFE_INTEGER]) {
    await assert.rejects(
      gather(Readable.from([Buffer.alloc(5)]), length, () => undefined),
      isCorrupt,
    );
  }
  assert.ok(process.memoryUsage().external - before < 64 * 1024 * 1024);
});

test("a body without an announced length is given up where it does not end", async () => {
  const chunk = Buffer.alloc(1024 * 1024);
  let sent = 0;
  const source = new Readable({
    read() {
      sent += 1;
      this.push(chunk);
    },
  });
  await assert.rejects(
    gather(source, undefined, () => undefined),
    isCorrupt,
  );
  assert.ok(sent < 200, `${sent} MiB were taken`);
});
