/** Every row of the tables of an opening, visited by the real engine, with what must come of it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 } from "../../src/base/checksum.ts";
import { OperationError } from "../../src/base/errors.ts";
import { claimEpoch, fenceForDeletion, newestClaim, startEpoch } from "../../src/volume/fencing.ts";
import { CheckpointShards, encodeCheckpoint } from "../../src/volume/format/checkpoint.ts";
import { FILE_HEADER_BYTES } from "../../src/volume/format/journal-record.ts";
import { ObjectReferences } from "../../src/volume/format/object-references.ts";
import type { Epoch, SegmentSeq } from "../../src/volume/identity.ts";
import { checkpointKey } from "../../src/volume/keys.ts";
import * as tables from "../../src/volume/recovery-tables.ts";
import { RecoveryWorld, volumeId } from "./recovery-world.ts";
import { unvisited, watchTables } from "./visits.ts";

const visited = watchTables();
const fenced = { kind: "fenced" };
const corrupt = { kind: "corrupt" };

/** A test in a world of its own that must look up `rows`. */
function visit(name: string, rows: readonly string[], act: (world: RecoveryWorld) => Promise<void>): void {
  test(name, async () => {
    visited.clear();
    await act(await RecoveryWorld.create());
    for (const row of rows) assert.ok(visited.has(row), `not visited: ${row}`);
    for (const row of visited) everVisited.add(row);
  });
}
const everVisited = new Set<string>();

visit(
  "a new volume is taken, by its last owner again, and by another node; reading it owns it as well",
  ["the volume is taken, whoever had it", "no journal"],
  async ({ a, b }) => {
    await a.open();
    await a.write(1, 11);
    await a.close();
    await a.open("take", { readOnly: true });
    assert.deepEqual([await a.read(1), a.volume.epoch], [11, 2]);
    a.kill();
    await b.open();
    assert.deepEqual([await b.read(1), b.volume.epoch], [11, 3]);
  },
);

visit(
  "a server that comes back to a volume that nobody ever claimed changes nothing",
  ["resumed, nobody ever claimed it"],
  async (world) => {
    const before = await world.keys("v1/");
    await assert.rejects(world.a.open("resume"), fenced);
    assert.deepEqual(await world.keys("v1/"), before);
    assert.deepEqual(await world.a.files(), []);
  },
);

visit(
  "a server that comes back finds its writes, those in the store and those in the journal",
  [
    "resumed by the last claimant",
    "the journal of the last owner",
    "the journal holds what the store lacks, or nothing is lacking",
    "a segment",
    "the last owner was closed, or may still run",
    "no checkpoint yet",
    "the first epoch of the volume",
    "the epoch was started",
  ],
  async (world) => {
    const { a } = world;
    await a.open();
    await a.write(1, 11);
    await a.volume.drain();
    a.stopUploads();
    await a.write(2, 22);
    a.kill();
    await a.open("resume");
    assert.deepEqual(await a.values(1, 2, 3), [11, 22, 0]);
  },
);

visit(
  "who set its journal aside after it had claimed is still known as the owner",
  [
    "another has owned the volume since",
    "resumed by the last owner, whose journal got a new identity after the claim",
    "the checkpoint is sound",
    "the epoch that the checkpoint covers",
  ],
  async (world) => {
    const { a, b } = world;
    await a.open();
    a.stopUploads();
    await a.write(1, 11);
    a.kill();
    await b.open();
    await b.write(1, 22);
    await b.close();
    world.read.clear();
    await a.open();
    assert.equal(world.read.has(world.logKey(2, 1)), false, "what the checkpoint covers is not replayed");
    assert.deepEqual(await a.values(1), [22]);
    assert.equal((await a.quarantined()).length, 1);
    await a.write(2, 33);
    a.kill();
    await a.open("resume");
    assert.deepEqual(await a.values(1, 2), [22, 33]);
    assert.equal((await a.quarantined()).length, 1);
  },
);

visit(
  "a server that comes back after another node has taken the volume leaves it alone",
  ["resumed after another has claimed it"],
  async (world) => {
    const { a, b } = world;
    await a.open();
    await a.write(1, 11);
    a.kill();
    await b.open();
    const before = await world.keys("v1/");
    await assert.rejects(a.open("resume"), fenced);
    assert.deepEqual(await world.keys("v1/"), before);
    assert.equal((await a.files()).length > 0, true);
    await b.write(1, 22);
    await b.volume.drain();
  },
);

visit(
  "an owner that dies between claim and START is passed over, and so is one that fenced it and died",
  [
    "the epoch was claimed and never started",
    "the epoch was closed before it started",
    "the last owner was fenced",
    "a journal, and nobody ever started",
  ],
  async (world) => {
    const { a, b } = world;
    const confirm = async (): Promise<void> => {
      throw new OperationError("in-use", "published to another node");
    };
    await assert.rejects(a.open("take", { confirm }), { kind: "in-use" });
    const dieBeforeStart = async (epoch: number): Promise<void> => {
      world.beforePut = (key) => {
        if (key === world.logKey(epoch, 0)) throw new OperationError("unavailable", "the process dies here");
      };
      await assert.rejects(a.open(), { kind: "unavailable" });
      world.beforePut = () => undefined;
      a.kill();
    };
    await dieBeforeStart(2);
    await a.open();
    assert.equal(a.volume.epoch, 3);
    await a.write(1, 11);
    await a.volume.drain();
    a.kill();
    await dieBeforeStart(4);
    assert.deepEqual(await a.quarantined(), []);
    await b.open();
    assert.equal(b.volume.epoch, 5);
    assert.deepEqual(await b.values(1), [11]);
    b.kill();
    await b.open("resume");
    assert.deepEqual(await b.values(1), [11], "also read as a part of the history");
  },
);

visit(
  "a START that comes while its epoch is being fenced is found, and its owner is closed",
  ["the epoch was claimed and never started", "the epoch was started"],
  async (world) => {
    const { a, b } = world;
    const { promise: released, resolve: release } = Promise.withResolvers<void>();
    const { promise: held, resolve: hold } = Promise.withResolvers<void>();
    let opening: Promise<unknown> = Promise.resolve();
    let puts = 0;
    world.beforePut = async (key) => {
      if (key !== world.logKey(1, 0)) return;
      puts += 1;
      if (puts === 1) {
        hold();
        await released;
      } else {
        release();
        await opening;
      }
    };
    opening = a.open();
    await held;
    await b.open();
    await a.write(1, 11);
    await assert.rejects(a.volume.drain(), fenced);
    await b.write(1, 22);
    await b.volume.drain();
  },
);

visit(
  "a segment in the middle of the history that is gone is corruption, and never a shorter history",
  ["an epoch with one before it", "a segment that a later START counts is not there"],
  async (world) => {
    const { a } = world;
    for (const value of [11, 22]) {
      await a.open();
      await a.write(value, value);
      await a.volume.drain();
      a.kill();
    }
    await world.store.delete([world.logKey(1, 1)]);
    await assert.rejects(a.open(), corrupt);
  },
);

visit(
  "START of an epoch in the middle of the history that is gone is corruption",
  ["START of the epoch before is not there"],
  async (world) => {
    for (let turn = 0; turn < 2; turn += 1) {
      await world.a.open();
      world.a.kill();
    }
    await world.store.delete([world.logKey(1, 0)]);
    await assert.rejects(world.a.open(), corrupt);
  },
);

visit("an epoch that names itself as its parent is corruption", ["the epoch before is not earlier"], async (world) => {
  const { fencing, ref, a } = world;
  const journalId = Buffer.alloc(16, 1);
  const claim = { nodeId: "node-x", journalId, publication: 0 };
  const epoch = await claimEpoch(fencing, ref, await newestClaim(fencing, ref), claim);
  const parent = { epoch, sequence: 0 as SegmentSeq };
  await startEpoch(fencing, ref, epoch, {
    journalId,
    journalEnd: 0,
    parent,
    baseCheckpoint: undefined,
    everWritten: false,
  });
  await assert.rejects(a.open(), corrupt);
});

visit(
  "a checkpoint of an epoch that is no part of the history is corruption",
  ["the checkpoint covers an epoch outside the chain"],
  async (world) => {
    const { a, ref } = world;
    await a.open();
    a.kill();
    const body = encodeCheckpoint(
      { uid: ref.uid, epoch: 1, sequence: 1, nonce: Buffer.alloc(16, 1) },
      {
        covers: { epoch: 9 as Epoch, sequence: 1 as SegmentSeq },
        journalId: Buffer.alloc(16),
        journalEnd: 0,
        sizeBytes: 64 * 1024 * 1024,
        everWritten: false,
        timeMs: 0,
        lineage: [],
        mapObjects: new ObjectReferences(0),
        shards: new CheckpointShards(0),
      },
    );
    await world.store.putIfAbsent(checkpointKey(ref, 1 as Epoch, 1), [body]);
    await assert.rejects(a.open(), corrupt);
  },
);

for (const [what, change] of [
  ["is lost", undefined],
  ["has one other bit", (bytes: Buffer): Buffer => (bytes.writeUInt8(bytes[90] ^ 4, 90), bytes)],
] as const) {
  visit(
    `a newest checkpoint that ${what} is corruption, nobody is fenced for it, and its return mends all`,
    ["the checkpoint is lost or damaged"],
    async (world) => {
      const { a } = world;
      await a.open();
      await a.write(1, 11);
      await a.close();
      const [checkpoint] = await world.checkpoints(1);
      await a.open();
      await a.write(2, 22);
      await a.volume.drain();
      a.kill();
      const bytes = await world.store.get(checkpoint);
      let mend = async (): Promise<void> => void (await world.store.putIfAbsent(checkpoint, [bytes!]));
      if (change === undefined) await world.store.delete([checkpoint]);
      else mend = await world.replace(checkpoint, change);
      await assert.rejects(a.open(), corrupt);
      assert.equal(await world.has(world.logKey(2, 2)), false, "no FENCE behind the last segment");
      await mend();
      await a.open();
      assert.deepEqual(await a.values(1, 2), [11, 22]);
    },
  );
}

visit(
  "a volume whose checkpoint is damaged can be deleted, and its owner is stopped",
  ["the checkpoint is lost or damaged, and the volume is deleted anyway"],
  async (world) => {
    const { a, b } = world;
    await a.open();
    await a.write(1, 11);
    await a.close();
    await b.open();
    const [checkpoint] = await world.checkpoints(1);
    await world.replace(checkpoint, (bytes) => bytes.subarray(0, 80));
    await fenceForDeletion(world.fencing, world.ref, "controller");
    await b.write(2, 22);
    await assert.rejects(b.volume.drain(), fenced);
  },
);

visit(
  "a journal without one header that holds is kept for people, whoever owned the volume",
  ["no file of the journal has a header that holds"],
  async ({ a, b }) => {
    const directory = await b.journal();
    const garbage = await directory.open("0000000000000001.journal", { create: true });
    garbage.writeSync(Buffer.alloc(8192, 0x5a), 0);
    await b.open();
    assert.deepEqual(await b.quarantined(), ["0000000000000001-0000000000000001.quarantine"]);
    await b.close();
    await a.open();
    a.stopUploads();
    await a.write(1, 11);
    a.kill();
    const [file] = await a.files();
    await a.damage(file, 30, Buffer.from([0xff]));
    await a.open();
    assert.deepEqual(await a.values(1), [0]);
    assert.equal((await a.quarantined()).length, 1);
  },
);

visit(
  "the journal of a deleted volume is removed where one of the same name is opened, and never replayed",
  ["the journal of a deleted volume of the same name"],
  async (world) => {
    const { a, b } = world;
    for (const successor of [undefined, b]) {
      await a.open();
      a.stopUploads();
      await a.write(1, 11);
      a.kill();
      await world.deleteVolume();
      await world.createVolume();
      await successor?.open();
      await a.open();
      assert.deepEqual(await a.values(1), [0]);
      assert.deepEqual(await a.quarantined(), []);
      assert.ok((await a.files()).length <= 2);
      a.kill();
      successor?.kill();
      await a.open();
      a.kill();
    }
  },
);

visit(
  "where a record is damaged the writes before it come back, and the files behind it are kept",
  ["the journal breaks off before its last file"],
  async (world) => {
    const { a } = world;
    await a.open();
    a.stopUploads();
    for (let lba = 0; lba < 150; lba += 1) await a.write(lba, 1 + lba);
    a.kill();
    const files = await a.files();
    assert.ok(files.length >= 3);
    await a.damage(files[0], FILE_HEADER_BYTES + 10 * 4160 + 3000, Buffer.from([0xa5, 0x5a]));
    await a.open("resume");
    assert.deepEqual(await a.values(0, 9, 10, 11, 149), [1, 10, 0, 0, 0]);
    const kept = await a.quarantined();
    assert.ok(kept.length >= 2, kept.join(" "));
    await a.write(11, 77);
    a.kill();
    await a.open("resume");
    assert.deepEqual(await a.values(9, 10, 11, 149), [10, 0, 77, 0]);
    assert.deepEqual(await a.quarantined(), kept);
  },
);

visit(
  "a device that waits is refused a journal that was damaged meanwhile; nothing is changed, and it goes on without one",
  [
    "writes are gone that a waiting client was told of",
    "nobody relies on more than was flushed: a loss of power leaves any part of the rest",
    "the epoch was claimed and never started",
  ],
  async ({ a, b }) => {
    const waiting = { clientWaits: true };
    for (const [writes, at] of [
      [10, 5 * 4160 + 3000],
      [10, 9 * 4160 + 3000],
      [150, 10 * 4160 + 3000],
    ]) {
      await a.open();
      a.stopUploads();
      for (let lba = 0; lba < writes; lba += 1) await a.write(lba, 1 + lba);
      a.kill();
      const [file] = await a.files();
      await a.damage(file, FILE_HEADER_BYTES + at, Buffer.from([0xa5, 0x5a]));
      const before = await a.image();
      for (let turn = 0; turn < 2; turn += 1) await assert.rejects(a.open("resume", waiting), corrupt);
      assert.deepEqual(await a.image(), before);
      await a.open();
      const lba = Math.floor(at / 4160);
      assert.deepEqual(await a.values(0, lba - 1, lba), [1, lba, 0]);
      await a.write(lba, 77);
      a.kill();
      await a.open("resume", waiting);
      assert.deepEqual(await a.values(0, lba - 1, lba), [1, lba, 77]);
      await a.close();
      await b.open();
      await b.volume.trim(0, 200 * 4096, false);
      await b.close();
    }
  },
);

visit(
  "a device that waits goes on where nothing was damaged, or only what the store holds",
  ["the last write was whole, or cut short by the death of its process before it was answered"],
  async ({ a }) => {
    await a.open();
    for (let lba = 0; lba < 10; lba += 1) await a.write(lba, 1 + lba);
    await a.volume.drain();
    a.kill();
    await a.open("resume", { clientWaits: true });
    a.kill();
    const [file] = await a.files();
    await a.damage(file, FILE_HEADER_BYTES + 4, Buffer.alloc(30));
    await a.open("resume", { clientWaits: true });
    assert.deepEqual(await a.values(0, 9, 10), [1, 10, 0]);
  },
);

visit(
  "where the disk lost what the store has, the store counts and the journal begins behind it",
  ["the disk kept less than the store"],
  async (world) => {
    const { a } = world;
    await a.open();
    for (let lba = 0; lba < 10; lba += 1) await a.write(lba, 1 + lba);
    await a.volume.drain();
    a.kill();
    const [file] = await a.files();
    await a.damage(file, FILE_HEADER_BYTES, Buffer.alloc(20 * 4160));
    await a.open("resume");
    assert.deepEqual(await a.values(0, 9, 10), [1, 10, 0]);
    assert.deepEqual(await a.quarantined(), []);
    await a.write(10, 11);
    a.kill();
    await a.open("resume");
    assert.deepEqual(await a.values(0, 9, 10), [1, 10, 11]);
  },
);

for (const [what, row] of [
  ["damaged", "the journal breaks off within what the store holds"],
  ["lost", "the file that should follow the store's last record is not there"],
] as const) {
  visit(
    `where the journal's file at the store's end is ${what}, the files behind it are kept`,
    [row],
    async (world) => {
      const { a } = world;
      await a.open();
      for (let lba = 0; lba < 10; lba += 1) await a.write(lba, 1 + lba);
      await a.volume.drain();
      a.stopUploads();
      for (let lba = 10; lba < 150; lba += 1) await a.write(lba, 1 + lba);
      a.kill();
      const files = await a.files();
      assert.ok(files.length >= 3);
      if (what === "damaged") await a.damage(files[0], FILE_HEADER_BYTES, Buffer.alloc(4160));
      else await (await a.journal()).remove(files[0]);
      await a.open("resume");
      assert.deepEqual(await a.values(0, 9, 10, 149), [1, 10, 0, 0]);
      const kept = await a.quarantined();
      assert.ok(kept.length >= 2, kept.join(" "));
      await a.write(10, 77);
      a.kill();
      await a.open("resume");
      assert.deepEqual(await a.values(9, 10, 11), [10, 77, 0]);
      assert.deepEqual(await a.quarantined(), kept);
    },
  );
}

visit(
  "an attach rests on its publication, before the claim and after it; a server that resumes does not ask",
  [
    "the volume is still published here",
    "the publication was lost meanwhile",
    "opened without a publication",
    "resumed: the newest claim decides, the control plane is not asked",
  ],
  async (world) => {
    const { a, b, catalog } = world;
    const lost = { kind: "in-use" };
    await assert.rejects(a.openHosted("take", 1), lost);
    const first = await catalog.publish(volumeId, "node-a", false);
    const served = await a.openHosted("take", first.number);
    await served.leave();
    const resumed = await a.openHosted("resume", first.number);
    await catalog.unpublish(volumeId, "node-a");
    await resumed.leave();
    const second = await catalog.publish(volumeId, "node-b", false);
    await assert.rejects(a.openHosted("take", first.number), lost);
    const owner = await b.openHosted("take", second.number);
    world.beforePut = async (key) => {
      if (!key.includes("/epoch/")) return;
      world.beforePut = () => undefined;
      await catalog.unpublish(volumeId, "node-b");
      await catalog.publish(volumeId, "node-a", false);
    };
    await assert.rejects(b.openHosted("take", second.number), lost);
    await owner.device.write(0, Buffer.alloc(4096, 5), true);
    await owner.drain();
    await assert.rejects(a.openHosted("take", first.number), lost, "a later one for this node");
    await owner.close();
    const free = await a.openHosted("take", 0);
    const target = Buffer.alloc(1);
    await free.byteDevice.read(0, target);
    assert.equal(target[0], 5);
    await free.close();
  },
);

for (const [what, at, value] of [
  ["a newer version wrote", 4, 2],
  ["has a size that cannot be", 64, 1],
] as const) {
  visit(`a journal that ${what} is refused before anything is claimed, and stays as it is`, [], async (world) => {
    const { a } = world;
    await a.open();
    a.stopUploads();
    await a.write(1, 11);
    a.kill();
    const [name] = await a.files();
    const file = await (await a.journal()).open(name);
    const header = Buffer.alloc(72);
    file.readSync(header, 0);
    const changed = Buffer.from(header);
    changed.writeUInt16LE(value, at);
    changed.writeUInt32LE(crc32(changed.subarray(0, 68)), 68);
    file.writeSync(changed, 0);
    const before = await world.keys("v1/");
    await assert.rejects(a.open(), corrupt);
    assert.deepEqual(await world.keys("v1/"), before);
    file.writeSync(header, 0);
    await a.open();
    assert.deepEqual(await a.values(1), [11]);
  });
}

test("every row of every table of an opening was visited by the tests above", () => {
  for (const table of Object.values(tables)) assert.deepEqual(unvisited(table, everVisited), [], table.title);
});
