/** Mutants of fencing, recovery, publication and the store's verdicts on who was first. */
import type { Mutant } from "../mutant.ts";

export const ownershipMutants: readonly Mutant[] = [
  {
    name: "no-fence",
    file: "src/volume/fencing.ts",
    find: 'if ((await putFence(environment, volume, epoch, next)) === "created") return (next - 1) as SegmentSeq;',
    replace: "if (next > 0) return (next - 1) as SegmentSeq;",
    why: "a stalled former owner goes on: its flushes are acknowledged and lost",
  },
  {
    name: "no-fence-of-unstarted-epoch",
    file: "src/volume/fencing.ts",
    find: 'if ((await putFence(environment, volume, epoch as Epoch, 0 as SegmentSeq)) === "created") continue;',
    replace: "if (epoch > 0) continue;",
    why: "a claimer that stood still starts later and becomes a second owner",
  },
  {
    name: "unstarted-epoch-ends-history",
    file: "src/volume/fencing.ts",
    find: 'if ((await putFence(environment, volume, epoch as Epoch, 0 as SegmentSeq)) === "created") continue;',
    replace:
      'if ((await putFence(environment, volume, epoch as Epoch, 0 as SegmentSeq)) === "created") return undefined;',
    why: "an owner that died before it had started takes all history with it",
  },
  {
    name: "lost-race-to-the-gap-ignored",
    file: "src/volume/fencing.ts",
    find: 'if ((await putFence(environment, volume, epoch, next)) === "created") return (next - 1) as SegmentSeq;',
    replace: "await putFence(environment, volume, epoch, next);\n    if (next > 0) return (next - 1) as SegmentSeq;",
    why: "a segment that came in just before the fence is left out, though its flush was acknowledged",
  },
  {
    name: "start-ignores-412",
    file: "src/volume/fencing.ts",
    find: 'if ((await environment.store.putIfAbsent(key, [head], environment.options)) === "created") return;',
    replace: "await environment.store.putIfAbsent(key, [head], environment.options);\n  if (epoch > 0) return;",
    why: "an owner whose epoch was closed before it began goes on as a second writer",
  },
  {
    name: "right-not-confirmed-after-claim",
    file: "src/volume/recovery.ts",
    find: "  await environment.confirm();\n",
    replace: "",
    why: "a late call on a node that has lost the volume, or of a deleted volume, fences the owner",
  },
  {
    name: "foreign-journal-replayed",
    file: "src/volume/recovery-tables.ts",
    find: 'when: { journal: "of this volume", owner: "another journal" },\n      action: "set aside",',
    replace: 'when: { journal: "of this volume", owner: "another journal" },\n      action: "replay",',
    why: "what a fenced owner never uploaded is written over its successor's data",
  },
  {
    name: "resume-takes-over",
    file: "src/volume/recovery-tables.ts",
    find: 'when: { mode: "resume", claimant: "another journal" },\n      action: "refuse",',
    replace: 'when: { mode: "resume", claimant: "another journal" },\n      action: "claim",',
    why: "a restarted server takes the volume away from the node that took it over meanwhile",
  },
  {
    name: "checkpoint-journal-end-forgotten",
    file: "src/volume/recovery.ts",
    find: "  if (covered > 0) history.journalEnd = checkpoint!.journalEnd;\n",
    replace: "",
    why: "journal records that S3 holds are replayed over newer ones, or looked for in files given back",
  },
  {
    name: "segment-journal-end-forgotten",
    file: "src/volume/recovery.ts",
    find: "    history.journalEnd = head.journalEnd;\n",
    replace: "",
    why: "journal records that S3 holds are replayed over newer ones, or looked for in files given back",
  },
  {
    name: "earlier-epochs-left-out",
    file: "src/volume/recovery.ts",
    find: "starts.slice(0, -1).entries()",
    replace: "starts.slice(0, 0).entries()",
    why: "segments of epochs between the checkpoint and the last owner are not applied",
  },
  {
    name: "epoch-read-one-short",
    file: "src/volume/recovery.ts",
    find: "const end = starts[index + 1].parent!.sequence;",
    replace: "const end = starts[index + 1].parent!.sequence - 1;",
    why: "the last segment of a former epoch is not applied",
  },
  {
    name: "covered-segment-skips-next",
    file: "src/volume/recovery.ts",
    find: "volume, last.epoch, (covered + 1) as SegmentSeq,",
    replace: "volume, last.epoch, (covered > 0 ? covered + 2 : 1) as SegmentSeq,",
    why: "the first segment behind a checkpoint is not applied",
  },
  {
    name: "ever-written-forgotten",
    file: "src/volume/recovery.ts",
    find: "    history.everWritten = checkpoint.everWritten;\n",
    replace: "",
    why: "a written volume says that it never was: it would be formatted",
  },
  {
    name: "journaled-writes-do-not-count",
    file: "src/volume/recovery.ts",
    find: "    journaled = true;\n",
    replace: "",
    why: "a volume that was written says that it never was after a crash: it would be formatted",
  },
  {
    name: "foreign-object-taken-for-own",
    file: "src/store/retrying.ts",
    find: 'return isOurs ? "created" : "exists";',
    replace: 'return "created";',
    why: "what another node wrote under the same key counts as one's own write: two owners",
  },
  {
    name: "own-object-taken-for-foreign",
    file: "src/store/retrying.ts",
    find: 'return isOurs ? "created" : "exists";',
    replace: 'return "exists";',
    why: "a lost reply of a put makes its writer believe that it was fenced",
  },
  {
    name: "conflict-taken-for-a-win",
    file: "src/store/retrying.ts",
    find: "const outcome = await this.#retry(",
    replace:
      'const first = this.#inner.putIfAbsent(key, body, options).catch(() => "created" as const);\n' +
      '      if ((await first) === "created") return "created";\n' +
      "      const outcome = await this.#retry(",
    why: "a put that the store refused for now (409, 503) counts as done",
  },
  {
    name: "publication-race-not-checked",
    file: "src/volume/publication.ts",
    find: "  if (numbers.at(-1) !== next.number) return false;\n",
    replace: "",
    why: "a writer that stood still publishes a volume that another node has",
    test: {
      file: "test/volume/catalog-race.test.ts",
      name: "a publisher that stood still while old records were removed does not get a number below the newest",
    },
  },
  {
    name: "deletion-not-looked-for-after-start",
    file: "src/volume/recovery.ts",
    find: "  await environment.exists(() => withdraw(environment, volume, epoch));\n",
    replace: "",
    why: "who stood still while the volume was deleted opens it afterwards",
    test: {
      file: "test/recovery/deletion.test.ts",
      name: "who stood still before its START while the volume was deleted does not open it",
    },
  },
  {
    name: "name-freed-without-tombstone",
    file: "src/volume/names.ts",
    find: "        await putTombstone(parts, volume.id, { uid: volume.uid, number: nextNumber, frees: binding });\n",
    replace: "        if (nextNumber > 0) return;\n",
    why: "a name is called free while the record still stands, and the DELETE may yet come",
    test: {
      file: "test/volume/names.test.ts",
      name: "a DELETE that had no answer and takes effect late leaves the next volume of the name alone",
    },
  },
  {
    name: "identity-read-once",
    file: "src/store/retrying.ts",
    find: "if (standing === undefined || isBodyOf(standing, body)) return standing;",
    replace: "if (standing === undefined || body.length > 0) return standing;",
    why: "one damaged answer makes an owner believe that it was fenced",
    test: {
      file: "test/store/retrying.test.ts",
      name: "one damaged answer does not make a put of one's own somebody else's",
    },
  },
];
