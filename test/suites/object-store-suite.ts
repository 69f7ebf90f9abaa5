/**
 * The contract of ObjectStore as tests, run on every implementation: objectStoreSuite("memory", open).
 * Nothing here depends on how fast a store is, or on what else stands in it below other prefixes.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { type ListOptions, type ListPage, listAll, type ObjectStore } from "../../src/store/object-store.ts";

export interface OpenedStore {
  /** Empty. */
  store: ObjectStore;
  /** Removes what stood under the store, which is closed by then. */
  cleanup(): Promise<void>;
}

export function objectStoreSuite(name: string, open: () => Promise<OpenedStore>): void {
  describe(`object store: ${name}`, () => {
    let opened: OpenedStore;
    before(async () => {
      opened = await open();
    });
    after(async () => {
      await opened.store.close();
      await opened.cleanup();
    });
    const store = (): ObjectStore => opened.store;
    bodyTests(store);
    creationTests(store);
    listingTests(store);
    deletionTests(store);
  });
}

const random = new SeededRandom(42);

function body(length: number): Buffer {
  return random.bytes(length);
}

function bodyTests(store: () => ObjectStore): void {
  test("a body comes back as it was written, whatever its parts", async () => {
    const parts = [body(64), body(1), Buffer.alloc(0), body(100_000), body(4096)];
    assert.equal(await store().putIfAbsent("body/parts", parts), "created");
    assert.deepEqual(await store().get("body/parts"), Buffer.concat(parts));
  });

  test("a body of 9 MiB comes back as it was written", async () => {
    const parts = [body(64), body(9 * 1024 * 1024)];
    await store().putIfAbsent("body/large", parts);
    const stored = await store().get("body/large");
    assert.ok(stored?.equals(Buffer.concat(parts)));
  });

  test("a body that the caller changes after the put stays as it was written", async () => {
    const part = body(1000);
    const written = Buffer.from(part);
    await store().putIfAbsent("body/borrowed", [part]);
    part.fill(0);
    const first = await store().get("body/borrowed");
    assert.deepEqual(first, written);
    first?.fill(0);
    assert.deepEqual(await store().get("body/borrowed"), written);
  });

  test("an object that nobody created is undefined", async () => {
    assert.equal(await store().get("body/nothing"), undefined);
    assert.equal(await store().getRange("body/nothing", { offset: 0, length: 10 }), undefined);
  });

  test("a range is exactly the part of it that lies inside the object", async () => {
    const whole = body(10_000);
    await store().putIfAbsent("body/ranges", [whole]);
    const ranges = [
      { offset: 0, length: 1 },
      { offset: 0, length: 10_000 },
      { offset: 0, length: 20_000 },
      { offset: 9999, length: 1 },
      { offset: 9999, length: 2 },
      { offset: 10_000, length: 1 },
      { offset: 123_456_789, length: 5 },
    ];
    for (let index = 0; index < 40; index += 1) {
      ranges.push({ offset: random.below(11_000), length: 1 + random.below(5000) });
    }
    for (const range of ranges) {
      const answer = await store().getRange("body/ranges", range);
      const expected = whole.subarray(range.offset, range.offset + range.length);
      assert.deepEqual(answer, { bytes: Buffer.from(expected), totalBytes: 10_000 }, JSON.stringify(range));
    }
  });

  test("the memory of an answer is the caller's: nothing of the object changes with it", async () => {
    const whole = body(70_000);
    await store().putIfAbsent("body/memory", [whole]);
    for (const length of [100, 70_000]) {
      const [first, other] = await Promise.all([
        store().getRange("body/memory", { offset: 0, length }),
        store().getRange("body/memory", { offset: 0, length }),
      ]);
      first?.bytes.fill(0xee);
      assert.ok(other?.bytes.equals(whole.subarray(0, length)));
      const again = await store().getRange("body/memory", { offset: 0, length });
      assert.ok(again?.bytes.equals(whole.subarray(0, length)));
    }
  });

  test("a request whose signal has aborted is unavailable and does nothing", async () => {
    const options = { signal: AbortSignal.abort() };
    const requests = [
      () => store().putIfAbsent("body/aborted", [body(10)], options),
      () => store().get("body/aborted", options),
      () => store().getRange("body/aborted", { offset: 0, length: 1 }, options),
      () => store().list("body/", options),
      () => store().delete(["body/aborted"], options),
    ];
    for (const request of requests) {
      await assert.rejects(request, (error) => isKind(error, "unavailable"));
    }
    assert.equal(await store().get("body/aborted"), undefined);
  });
}

function creationTests(store: () => ObjectStore): void {
  test("a second create answers exists and leaves the first object alone", async () => {
    const first = body(500);
    assert.equal(await store().putIfAbsent("create/twice", [first]), "created");
    assert.equal(await store().putIfAbsent("create/twice", [body(500)]), "exists");
    assert.equal(await store().putIfAbsent("create/twice", [body(9)]), "exists");
    assert.deepEqual(await store().get("create/twice"), first);
  });

  test("of sixteen racing creates exactly one wins, and its bytes are what everyone reads", async () => {
    for (let round = 0; round < 20; round += 1) {
      const bodies = Array.from({ length: 16 }, () => body(200 + random.below(20_000)));
      const key = `create/race-${round}`;
      const outcomes = await Promise.all(bodies.map((part) => store().putIfAbsent(key, [part])));
      assert.deepEqual(outcomes.toSorted(), ["created", ...Array.from({ length: 15 }, () => "exists")]);
      assert.deepEqual(await store().get(key), bodies[outcomes.indexOf("created")]);
    }
  });

  test("a created object is listed at once, with its size", async () => {
    for (let index = 0; index < 20; index += 1) {
      const key = `create/seen-${index.toString().padStart(4, "0")}`;
      await store().putIfAbsent(key, [body(100 + index)]);
      const page = await store().list("create/seen-");
      assert.equal(page.objects.at(-1)?.key, key);
      assert.equal(page.objects.at(-1)?.sizeBytes, 100 + index);
      assert.ok((page.objects.at(-1)?.modifiedMs ?? 0) > 1e12);
    }
  });
}

/** The keys of a listing, page by page, as a caller would go through them. */
async function allPages(store: ObjectStore, prefix: string, options: ListOptions): Promise<ListPage[]> {
  const pages: ListPage[] = [];
  for (let behind = options.after; ;) {
    const page = await store.list(prefix, behind === undefined ? options : { ...options, after: behind });
    pages.push(page);
    if (page.next === undefined) return pages;
    behind = page.next;
  }
}

const LISTED = [
  "list/-",
  "list/0",
  "list/0-1",
  "list/00/a",
  "list/00/b/c",
  "list/00/b/d",
  "list/01.x/a",
  "list/01/a",
  "list/A",
  "list/a-b",
  "list/a.b",
  "list/a/1",
  "list/a/2",
  "list/a/3/4/5",
  "list/a_b",
  "list/aa/1",
  "list/z=1",
];

function listingTests(store: () => ObjectStore): void {
  describe("of objects under a prefix", () => {
    before(async () => {
      for (const key of LISTED.toReversed()) await store().putIfAbsent(key, [body(70)]);
    });

    test("a listing is in plain byte order", async () => {
      const keys: string[] = [];
      for await (const object of listAll(store(), "list/")) keys.push(object.key);
      assert.deepEqual(keys, LISTED);
    });

    test("a prefix may end anywhere in a key", async () => {
      for (const prefix of ["list/a", "list/a/", "list/a/3", "list/00/b/", "list/zz", "list/01", "lis", "nothing/"]) {
        const page = await store().list(prefix);
        assert.deepEqual(
          page.objects.map((object) => object.key),
          LISTED.filter((key) => key.startsWith(prefix)),
          prefix,
        );
      }
    });

    test("pages of any size, taken one after another, hold every key once", async () => {
      for (const limit of [1, 2, 3, 7, 16, 17, 18]) {
        const pages = await allPages(store(), "list/", { limit });
        assert.deepEqual(
          pages.flatMap((page) => page.objects.map((object) => object.key)),
          LISTED,
        );
        for (const page of pages.slice(0, -1)) assert.equal(page.objects.length, limit);
      }
    });

    test("a listing goes on behind a key, whether that key exists or not", async () => {
      for (const key of [...LISTED, "list/", "list/00/", "list/a/3", "list/b", "list/zz", "a", "zzz"]) {
        const page = await store().list("list/", { after: key });
        assert.deepEqual(
          page.objects.map((object) => object.key),
          LISTED.filter((candidate) => candidate > key),
          key,
        );
      }
    });

    test("a delimiter groups keys, and pages of groups hold each group once", async () => {
      for (const limit of [1, 2, 5, 1000]) {
        const pages = await allPages(store(), "list/", { delimiter: "/", limit });
        assert.deepEqual(
          pages.flatMap((page) => page.objects.map((object) => object.key)),
          LISTED.filter((key) => !key.slice("list/".length).includes("/")),
        );
        assert.deepEqual(
          pages.flatMap((page) => page.prefixes),
          ["list/00/", "list/01.x/", "list/01/", "list/a/", "list/aa/"],
        );
      }
    });

    test("a delimiter looks only behind the prefix", async () => {
      const page = await store().list("list/a/", { delimiter: "/" });
      assert.deepEqual(
        [page.objects.map((object) => object.key), page.prefixes, page.next],
        [["list/a/1", "list/a/2"], ["list/a/3/"], undefined],
      );
      const groups = await store().list("list/a", { delimiter: "/" });
      assert.deepEqual(groups.prefixes, ["list/a/", "list/aa/"]);
    });

    test("a group is left out where the listing goes on in it or behind it", async () => {
      for (const key of ["list/a/", "list/a/1", "list/a/3/4/5"]) {
        const page = await store().list("list/", { delimiter: "/", after: key });
        assert.deepEqual(page.prefixes, ["list/aa/"], key);
      }
    });
  });
}

function deletionTests(store: () => ObjectStore): void {
  test("deleted objects are gone from gets and listings, others stay", async () => {
    for (const key of ["delete/a/1", "delete/a/2", "delete/b"]) await store().putIfAbsent(key, [body(80)]);
    await store().delete(["delete/a/1"]);
    await store().delete(["delete/b", "delete/missing/x"]);
    assert.equal(await store().get("delete/a/1"), undefined);
    const page = await store().list("delete/");
    assert.deepEqual(
      page.objects.map((object) => object.key),
      ["delete/a/2"],
    );
  });

  test("deleting nothing, or what is not there, is no error", async () => {
    await store().delete([]);
    await store().delete(["delete/never"]);
    await store().delete(Array.from({ length: 1000 }, (_, index) => `delete/never/${index}`));
  });

  test("a deleted key can be created again", async () => {
    const second = body(90);
    await store().putIfAbsent("delete/again", [body(90)]);
    await store().delete(["delete/again"]);
    assert.equal(await store().putIfAbsent("delete/again", [second]), "created");
    assert.deepEqual(await store().get("delete/again"), second);
  });

  test("creates and deletes of neighbours at the same time do not disturb each other", async () => {
    const bodies = Array.from({ length: 24 }, () => body(300));
    await Promise.all(
      bodies.map(async (part, index) => {
        const key = `delete/busy/${index % 4}/${index}`;
        for (let round = 0; round < 5; round += 1) {
          assert.equal(await store().putIfAbsent(key, [part]), "created");
          assert.deepEqual(await store().get(key), part);
          await store().delete([key]);
          assert.equal(await store().get(key), undefined);
        }
      }),
    );
    assert.deepEqual((await store().list("delete/busy/")).objects, []);
  });
}
