/**
 * A slice of the fuzzing of every doorway, by one fixed seed: `npm run fuzz` runs any number of cases of any seed.
 * The last tests hold the fuzzer itself to its word: planted bugs of each kind are found.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import { fuzz } from "./fuzzer.ts";
import { targets } from "./targets.ts";
import type { FuzzTarget } from "./target.ts";
import { verdict } from "./verdict.ts";

/** Targets that open files, volumes and sockets for each case get fewer of them. */
const SLOW = /^(journal-(damaged|forged)|cache-|nbd-|stored-volume|csi-|control-api|grpc-|s3-)/;

for (const [name, make] of Object.entries(targets)) {
  const cases = SLOW.test(name) ? 40 : 500;
  test(`${name}: every input of ${cases} is a value or a typed error, soon and in little memory`, async () => {
    const target = await make();
    try {
      const { outcomes } = await fuzz(target, { seed: 3, cases, guided: false });
      const seen = Object.values(outcomes).reduce((sum, count) => sum + count, 0);
      assert.equal(seen, cases + target.seeds.length);
    } finally {
      await target.close?.();
    }
  });
}

function planted(run: (input: Buffer) => string): FuzzTarget {
  return { name: "planted", seeds: [Buffer.from("size\0\0\0\u0010")], run };
}

async function findsBug(target: FuzzTarget, guided = false): Promise<string> {
  try {
    await fuzz(target, { seed: 1, cases: 5000, guided });
  } catch (error) {
    return (error as Error).message;
  }
  return "nothing";
}

test("an error without a type is found, with the input that repeats it", async () => {
  const target = planted((input) =>
    verdict(
      ["corrupt"],
      () => {
        if (input.length < 8) throw new OperationError("corrupt", "too short");
        if (input[3] !== 0x65) throw new RangeError("planted");
      },
      () => undefined,
    ),
  );
  const message = await findsBug(target);
  assert.match(message, /RangeError: planted/);
  const input = Buffer.from(/input=(\S+)/.exec(message)?.[1] ?? "", "base64");
  assert.throws(() => void target.run(input), /RangeError: planted/);
});

test("an error of a kind that the doorway does not promise is found", async () => {
  const target = planted((input) =>
    verdict(
      ["corrupt"],
      () => {
        if (input.length > 9) throw new OperationError("busy", "planted");
      },
      () => undefined,
    ),
  );
  assert.match(await findsBug(target), /refused as busy/);
});

test("memory that a length field asks for and the input does not deserve is found", async () => {
  const kept: Buffer[] = [];
  const target = planted((input) => {
    kept.length = 0;
    if (input.length >= 8) kept.push(Buffer.alloc(Math.min(input.readUInt32BE(4), 2 ** 26)));
    return "value";
  });
  assert.match(await findsBug(target), /bytes were allocated for an input of/);
});

test("one seed gives the same cases twice, and another seed others", async () => {
  const inputsOf = async (seed: number): Promise<string[]> => {
    const inputs: string[] = [];
    const target = planted((input) => {
      inputs.push(input.toString("hex"));
      return "value";
    });
    await fuzz(target, { seed, cases: 200, guided: false });
    return inputs;
  };
  const first = await inputsOf(7);
  assert.deepEqual(await inputsOf(7), first);
  assert.notDeepEqual(await inputsOf(8), first);
});

test("inputs that reach what none before has reached are kept and mutated further", async () => {
  const target = targets.segment;
  const { corpus, blocks } = await fuzz(await target(), { seed: 1, cases: 3000, guided: true });
  assert.ok(corpus > 1 && blocks > 0, `corpus ${corpus}, blocks ${blocks}`);
});
