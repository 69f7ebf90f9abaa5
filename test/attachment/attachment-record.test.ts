/** What a restarted server believes of the record of an attachment, and what it reports instead. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { AttachmentRecords } from "../../src/attachment/attachment-record.ts";
import { MemoryDisk } from "../../src/base/memory-disk.ts";
import { attachOptions } from "./fakes.ts";

const options = attachOptions({ secrets: { accessKeyId: "a", secretAccessKey: "b" } });
const record = { options, backend: "s3block:vol-1", sizeBytes: 2 ** 30, blockSizeBytes: 4096 };

async function readBack(change: (written: Record<string, Record<string, unknown>>) => void): Promise<unknown> {
  const written = JSON.parse(JSON.stringify({ version: 1, ...record })) as Record<string, Record<string, unknown>>;
  change(written);
  const disk = new MemoryDisk();
  const file = await disk.open(`${options.volumeId}.json`, { create: true });
  file.writeSync(Buffer.from(JSON.stringify(written)), 0);
  return (await new AttachmentRecords(disk).list())[0].record;
}

test("a record comes back as it was written", async () => {
  assert.deepEqual(await readBack(() => undefined), { version: 1, ...record });
});

test("a durability that does not exist is damage: it would let flushes wait for less than was promised", async () => {
  for (const durability of ["s3s3", "S3", null, 3]) {
    assert.equal(await readBack((written) => (written.options.durability = durability)), undefined);
  }
});

test("secrets that are missing, or no map of texts, are damage", async () => {
  for (const secrets of [undefined, null, ["a"], "a", { accessKeyId: 1 }]) {
    assert.equal(await readBack((written) => (written.options.secrets = secrets)), undefined);
  }
});
