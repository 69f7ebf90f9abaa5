/** Listings of memory and directory stores against a plain model of what S3 answers, for arbitrary keys and questions. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { DirectoryStore } from "../../src/store/directory.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { ListOptions, ObjectStore } from "../../src/store/object-store.ts";

const part = fc.string({ unit: fc.constantFrom("a", "b", "-", ".", "0"), minLength: 1, maxLength: 2 });
const key = fc
  .array(part, { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join("/"))
  .filter((text) => !/(^|\/)\.{1,2}($|\/)/.test(text));
const question = fc.record({
  prefix: fc.oneof(
    fc.constant(""),
    key,
    key.map((text) => `${text}/`),
  ),
  after: fc.option(
    fc.oneof(
      key,
      key.map((text) => `${text}/`),
    ),
    { nil: undefined },
  ),
  limit: fc.integer({ min: 1, max: 5 }),
  delimiter: fc.constantFrom(undefined, "/" as const),
});
type Question = typeof question extends fc.Arbitrary<infer T> ? T : never;

/** All entries of the answer, not cut into pages: keys and groups, in order. */
function expectedEntries(keys: readonly string[], { prefix, after = "", delimiter }: Question): string[] {
  const entries: string[] = [];
  for (const candidate of [...new Set(keys)].toSorted((left, right) => (left < right ? -1 : 1))) {
    if (!candidate.startsWith(prefix)) continue;
    const end = delimiter === undefined ? -1 : candidate.indexOf(delimiter, prefix.length);
    const entry = end === -1 ? candidate : candidate.slice(0, end + 1);
    if (end === -1 ? candidate <= after : candidate <= after || after.startsWith(entry)) continue;
    if (entries.at(-1) !== entry) entries.push(entry);
  }
  return entries;
}

async function checkListing(store: ObjectStore, keys: readonly string[], asked: Question): Promise<void> {
  const { prefix, after, limit, delimiter } = asked;
  const entries: string[] = [];
  for (let next = after; ;) {
    const options: ListOptions = {
      limit,
      ...(next === undefined ? {} : { after: next }),
      ...(delimiter === undefined ? {} : { delimiter }),
    };
    const page = await store.list(prefix, options);
    const found = [...page.objects.map((object) => object.key), ...page.prefixes];
    entries.push(...found.toSorted((left, right) => (left < right ? -1 : 1)));
    if (page.next === undefined) break;
    assert.equal(found.length, limit);
    next = page.next;
  }
  assert.deepEqual(entries, expectedEntries(keys, asked));
}

test("a memory store lists as S3 does", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(key, { maxLength: 25 }),
      fc.array(question, { maxLength: 10 }),
      async (keys, questions) => {
        const store = new MemoryStore();
        for (const name of keys) await store.putIfAbsent(name, [Buffer.from("x")]);
        for (const asked of questions) await checkListing(store, keys, asked);
      },
    ),
    { numRuns: 500 },
  );
});

test("a directory store lists as S3 does", async () => {
  const root = await mkdtemp(join(tmpdir(), "s3block-list-"));
  try {
    let round = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(key, { maxLength: 12 }),
        fc.array(question, { maxLength: 12 }),
        async (keys, questions) => {
          const store = new DirectoryStore({ root: join(root, String((round += 1))) });
          for (const name of keys) await store.putIfAbsent(name, [Buffer.from("x")]);
          for (const asked of questions) await checkListing(store, keys, asked);
        },
      ),
      { numRuns: 60 },
    );
  } finally {
    await rm(root, { recursive: true });
  }
});
