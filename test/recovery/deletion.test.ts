/** Openings that meet a deletion: a volume that was deleted is opened by nobody, and only what is certain is final. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { nullLog } from "../../src/base/log.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import { nameKey } from "../../src/volume/keys.ts";
import { RecoveryWorld, volumeId } from "./recovery-world.ts";

const notFound = { kind: "not-found" };

/** Deletes the volume when the object is about to be put, which is put then. */
function deleteBefore(world: RecoveryWorld, key: string): void {
  world.beforePut = async (put) => {
    if (put !== key) return;
    world.beforePut = () => undefined;
    await world.deleteVolume();
  };
}

/** Leaves the volume marked as deleted, with all it has. */
async function dieInDeletion({ store, clock, random }: RecoveryWorld): Promise<void> {
  const fenceForDeletion = (): Promise<void> => Promise.reject(new Error("the deleter dies"));
  const catalog = new Catalog({ store, clock, random, log: nullLog, fenceForDeletion });
  await assert.rejects(catalog.delete(volumeId), /the deleter dies/);
}

test("who stood still before its START while the volume was deleted does not open it", async () => {
  const world = await RecoveryWorld.create();
  await world.a.open();
  await world.a.write(1, 11);
  await world.a.close();
  deleteBefore(world, world.logKey(2, 0));
  await assert.rejects(world.b.open(), notFound);
  // A store that shows nothing is not believed so far that a START would be removed: it stays, and is never read.
  assert.deepEqual(await world.keys("v1/"), [world.logKey(2, 0)]);
  await world.createVolume();
  await world.b.open();
  assert.equal(await world.b.read(1), 0);
});

test("who meets the mark of a deletion after its START takes back what it wrote", async () => {
  const world = await RecoveryWorld.create();
  world.beforePut = async (put) => {
    if (put === world.logKey(1, 0)) await dieInDeletion(world);
  };
  await assert.rejects(world.a.open(), notFound);
  assert.ok(!(await world.has(world.logKey(1, 0))));
  assert.deepEqual(
    (await world.keys("v1/volumes/")).filter((key) => key.includes("/epoch/")),
    [],
  );
});

test("a volume that is deleted while its log is read is not called damaged", async () => {
  const world = await RecoveryWorld.create();
  for (const node of [world.a, world.b]) {
    await node.open();
    await node.write(1, 11);
    await node.volume.drain();
    node.kill();
  }
  const confirm = async (): Promise<void> => {
    await dieInDeletion(world);
    await world.store.delete([world.logKey(1, 0)]);
  };
  await assert.rejects(world.a.open("take", { confirm }), notFound);
});

test("a restarted server gives a volume up where the store says that it was deleted, and not where it says nothing", async () => {
  const world = await RecoveryWorld.create();
  await world.a.open();
  await world.a.write(1, 11);
  world.a.kill();
  const name = nameKey(volumeId, 1);
  const undo = await world.replace(name, (bytes) => bytes);
  await world.store.delete([name]);
  await assert.rejects(world.a.open("resume"), notFound);
  await undo();
  await world.a.open("resume");
  assert.equal(await world.a.read(1), 11);
  world.a.kill();
  // Deleted, and made again.
  await world.deleteVolume();
  await assert.rejects(world.a.open("resume"), notFound);
  await world.createVolume();
  await assert.rejects(world.a.open("resume"), { kind: "fenced" });
});

test("a restarted server gives a volume up that is being deleted", async () => {
  const world = await RecoveryWorld.create();
  await world.a.open();
  world.a.kill();
  await dieInDeletion(world);
  await assert.rejects(world.a.open("resume"), { kind: "fenced" });
  await assert.rejects(world.b.open("take"), notFound);
});
