/** One bad answer of the store is not final: what does not verify is asked for again, and only then called corrupt. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { FaultyStore, type StoreFault } from "../../src/store/faulty.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { EngineHarness, volumeId } from "../suites/engine-harness.ts";

const BLOCK = 4096;
const MIB = 1024 * 1024;
const BLOCKS = 40;

/** A volume that three owners have written, the last of which died. */
async function written(): Promise<EngineHarness> {
  const harness = new EngineHarness();
  await harness.create(64 * MIB);
  for (let owner = 0; owner < 3; owner += 1) {
    const volume = await harness.open();
    for (let block = owner; block < BLOCKS; block += 1) {
      await volume.write(block * BLOCK, Buffer.alloc(BLOCK, 1 + block + owner), true);
    }
    if (owner < 2) await harness.close();
  }
  return harness;
}

/** Every object is read wrong `times` times before it is read right. */
function badly(
  { store, clock }: EngineHarness,
  fault: StoreFault,
  times: number,
): { faulty: FaultyStore; patient: RetryingStore } {
  const random = new SeededRandom(3);
  const left = new Map<string, number>();
  const plan = ({ kind, key }: { kind: string; key: string }) => {
    const count = left.get(key) ?? times;
    if (kind !== "get" || count === 0) return undefined;
    left.set(key, count - 1);
    return { fault };
  };
  const faulty = new FaultyStore(store, plan, { clock, random });
  return { faulty, patient: new RetryingStore(faulty, { clock, random, log: nullLog }) };
}

for (const fault of ["rot", "short-body"] as const) {
  test(`a volume opens and reads right though every object comes wrong twice (${fault})`, async () => {
    const harness = await written();
    const { faulty, patient } = badly(harness, fault, 2);
    await harness.start();
    const journalDisk = await harness.disk.directory("other");
    const options = { store: patient, journalDisk, mode: "take", readOnly: false, publication: 0 } as const;
    const volume = await harness.engine.open(volumeId, options);
    for (let block = 0; block < BLOCKS; block += 1) {
      const target = Buffer.alloc(BLOCK);
      await volume.read(block * BLOCK, target);
      assert.equal(target[0], 1 + block + Math.min(2, block), `block ${block}`);
      assert.ok(target.every((byte) => byte === target[0]));
    }
    assert.ok(faulty.counts[fault] > 20, `${faulty.counts[fault]} bad answers`);
  });

  test(`a volume whose objects always come wrong is corrupt, and soon (${fault})`, async () => {
    const harness = await written();
    const { faulty, patient } = badly(harness, fault, Infinity);
    await harness.start();
    const journalDisk = await harness.disk.directory("other");
    const options = { store: patient, journalDisk, mode: "take", readOnly: false, publication: 0 } as const;
    await assert.rejects(harness.engine.open(volumeId, options), { kind: "corrupt" });
    assert.equal(faulty.counts[fault], 3);
  });
}
