/** Files written past the page cache hold what was given, at every length, however many are written at once. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { DurableFiles } from "../../src/store/durable-file.ts";

const areaBytes = 512 * 1024;
const leastDirectBytes = 128 * 1024;

async function temporary(t: TestContext, parent: string): Promise<string> {
  const directory = await mkdtemp(join(parent, "s3block-durable-"));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Random bytes, cut into parts of random lengths. */
function parts(random: SeededRandom, lengthBytes: number): Buffer[] {
  const bytes = random.bytes(lengthBytes);
  const cut: Buffer[] = [];
  for (let at = 0; at < lengthBytes;) {
    const step = Math.min(lengthBytes - at, 1 + (random.bytes(4).readUInt32LE() % 200_000));
    cut.push(bytes.subarray(at, at + step));
    at += step;
  }
  return cut;
}

// Where the temporary directory lies on a disk the first takes the direct way; memory file systems may refuse it.
for (const parent of [tmpdir(), "/dev/shm"]) {
  test(`a file in ${parent} holds its body at lengths around pages and areas`, async (t) => {
    const directory = await temporary(t, parent);
    const files = new DurableFiles();
    const random = new SeededRandom(1);
    const lengths = [1, 4096, leastDirectBytes, 2 * areaBytes, 4 * 1024 * 1024 + 12_345].flatMap((length) =>
      [length - 1, length, length + 1].filter((each) => each > 0),
    );
    for (const length of lengths) {
      const body = parts(random, length);
      const path = join(directory, String(length));
      await files.write(path, body);
      assert.ok((await readFile(path)).equals(Buffer.concat(body)), `${length} bytes`);
    }
  });
}

test("more files at once than there is memory for are all written", async (t) => {
  const directory = await temporary(t, tmpdir());
  const files = new DurableFiles();
  const random = new SeededRandom(2);
  const bodies = Array.from({ length: 20 }, (_, index) => parts(random, areaBytes + 1000 * index));
  await Promise.all(bodies.map((body, index) => files.write(join(directory, String(index)), body)));
  for (const [index, body] of bodies.entries()) {
    assert.ok((await readFile(join(directory, String(index)))).equals(Buffer.concat(body)), `file ${index}`);
  }
});

test("a name that is taken is refused and keeps its content", async (t) => {
  const directory = await temporary(t, tmpdir());
  const files = new DurableFiles();
  const path = join(directory, "name");
  await files.write(path, [Buffer.alloc(areaBytes, 1)]);
  await assert.rejects(files.write(path, [Buffer.alloc(areaBytes, 2)]), { code: "EEXIST" });
  assert.ok((await readFile(path)).equals(Buffer.alloc(areaBytes, 1)));
});
