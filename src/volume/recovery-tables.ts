/**
 * What an opening finds in the store and on the node's disk, and what it does about it, as tables. Nothing here acts:
 * recovery.ts, fencing.ts and journal.ts look up and do what the row says.
 *
 * In this order: whether the control plane still means this node (publicationTable, asked before and after the claim, and
 * before anybody is fenced by it), who claimed last (claimTable), how the epochs before ours ended (startTable, logTable), where the map
 * comes from (checkpointTable, chainTable), whose the local journal is (journalTable), whether somebody would miss what it
 * has lost (lossTable), and how far it reads (tailTable).
 * A damaged object of the store is never worked around: between an older checkpoint and the log, or behind a segment
 * that is missing, a hole cannot be told from an end.
 */
import { DecisionTable } from "../base/decision-table.ts";

export const publicationTable = new DecisionTable<
  {
    mode: "take" | "resume";
    asked: "no" | "yes";
    inForce: "the one asked for" | "a later one for this node" | "one for another node" | "none";
  },
  "go on" | "refuse"
>({
  title: "The publication that an opening rests on",
  facts: {
    mode: ["take", "resume"],
    asked: ["no", "yes"],
    inForce: ["the one asked for", "a later one for this node", "one for another node", "none"],
  },
  actions: {
    "go on": "go on",
    refuse: "*in-use*: nobody is fenced; an epoch that was claimed by then never starts",
  },
  rows: [
    {
      name: "the volume is still published here",
      when: { mode: "take", asked: "yes", inForce: "the one asked for" },
      action: "go on",
    },
    {
      name: "the publication was lost meanwhile",
      when: { mode: "take", asked: "yes", inForce: ["a later one for this node", "one for another node", "none"] },
      action: "refuse",
    },
    { name: "opened without a publication", when: { mode: "take", asked: "no" }, action: "go on" },
    {
      name: "resumed: the newest claim decides, the control plane is not asked",
      when: { mode: "resume" },
      action: "go on",
    },
  ],
});

export type Claimant = "nobody" | "this journal" | "this journal by its START" | "another journal";

/** Access makes no difference: who opens a volume for reading owns it as well. */
export const claimTable = new DecisionTable<{ mode: "take" | "resume"; claimant: Claimant }, "claim" | "refuse">({
  title: "The newest claim of an epoch",
  facts: {
    mode: ["take", "resume"],
    claimant: ["nobody", "this journal", "this journal by its START", "another journal"],
  },
  actions: {
    claim: "claim the next epoch",
    refuse: "*fenced*: nothing is claimed, nothing is changed",
  },
  rows: [
    { name: "the volume is taken, whoever had it", when: { mode: "take" }, action: "claim" },
    { name: "resumed, nobody ever claimed it", when: { mode: "resume", claimant: "nobody" }, action: "refuse" },
    { name: "resumed by the last claimant", when: { mode: "resume", claimant: "this journal" }, action: "claim" },
    {
      name: "resumed by the last owner, whose journal got a new identity after the claim",
      when: { mode: "resume", claimant: "this journal by its START" },
      action: "claim",
    },
    {
      name: "resumed after another has claimed it",
      when: { mode: "resume", claimant: "another journal" },
      action: "refuse",
    },
  ],
});

export const startTable = new DecisionTable<{ found: "START" | "FENCE" | "nothing" }, "stop" | "pass" | "fence">({
  title: "The start of an epoch before ours, from the newest down",
  facts: { found: ["START", "FENCE", "nothing"] },
  actions: {
    stop: "this is the last owner; close its log",
    pass: "go down to the epoch before",
    fence: "put FENCE there, then go down; what came there meanwhile is looked at instead",
  },
  rows: [
    { name: "the epoch was started", when: { found: "START" }, action: "stop" },
    { name: "the epoch was closed before it started", when: { found: "FENCE" }, action: "pass" },
    { name: "the epoch was claimed and never started", when: { found: "nothing" }, action: "fence" },
  ],
});

export const logTable = new DecisionTable<
  { epoch: "the last" | "an earlier one"; found: "data" | "FENCE" | "nothing" },
  "apply" | "end" | "fence" | "refuse"
>({
  title: "The next object in the log of a started epoch",
  facts: { epoch: ["the last", "an earlier one"], found: ["data", "FENCE", "nothing"] },
  actions: {
    apply: "apply it to the map, go on with the next",
    end: "the log ends before it",
    fence: "put FENCE there, the log ends before it; what came there meanwhile is looked at instead",
    refuse: "*corrupt*",
  },
  rows: [
    { name: "a segment", when: { found: "data" }, action: "apply" },
    { name: "the last owner was fenced", when: { epoch: "the last", found: "FENCE" }, action: "end" },
    {
      name: "the last owner was closed, or may still run",
      when: { epoch: "the last", found: "nothing" },
      action: "fence",
    },
    {
      name: "a segment that a later START counts is not there",
      when: { epoch: "an earlier one", found: ["FENCE", "nothing"] },
      action: "refuse",
    },
  ],
});

export type CheckpointState = "none" | "sound" | "missing" | "damaged";

export const checkpointTable = new DecisionTable<
  { found: CheckpointState; purpose: "open" | "delete" },
  "use" | "do without" | "refuse"
>({
  title: "The newest checkpoint of the last owner, else the one that its START names",
  facts: { found: ["none", "sound", "missing", "damaged"], purpose: ["open", "delete"] },
  actions: {
    use: "read the log from behind what it covers",
    "do without": "read the log from its beginning",
    refuse: "*corrupt*; an older one is not taken instead: the log between the two may have been collected",
  },
  rows: [
    { name: "no checkpoint yet", when: { found: "none" }, action: "do without" },
    { name: "the checkpoint is sound", when: { found: "sound" }, action: "use" },
    {
      name: "the checkpoint is lost or damaged",
      when: { found: ["missing", "damaged"], purpose: "open" },
      action: "refuse",
    },
    {
      name: "the checkpoint is lost or damaged, and the volume is deleted anyway",
      when: { found: ["missing", "damaged"], purpose: "delete" },
      action: "do without",
    },
  ],
});

export type ChainLink = "it is covered" | "no parent" | "parent" | "parent without START" | "parent not earlier";

export const chainTable = new DecisionTable<
  { checkpoint: "yes" | "no"; start: ChainLink },
  "done" | "go back" | "refuse"
>({
  title: "A START on the way back to the epoch that the checkpoint covers",
  facts: {
    checkpoint: ["yes", "no"],
    start: ["it is covered", "no parent", "parent", "parent without START", "parent not earlier"],
  },
  actions: {
    done: "replay from here on",
    "go back": "look at the START of the parent",
    refuse: "*corrupt*",
  },
  rows: [
    {
      name: "the epoch that the checkpoint covers",
      when: { checkpoint: "yes", start: "it is covered" },
      action: "done",
    },
    {
      name: "covered by a checkpoint that is not there",
      when: { checkpoint: "no", start: "it is covered" },
      action: "impossible",
    },
    { name: "the first epoch of the volume", when: { checkpoint: "no", start: "no parent" }, action: "done" },
    {
      name: "the checkpoint covers an epoch outside the chain",
      when: { checkpoint: "yes", start: "no parent" },
      action: "refuse",
    },
    { name: "an epoch with one before it", when: { start: "parent" }, action: "go back" },
    { name: "START of the epoch before is not there", when: { start: "parent without START" }, action: "refuse" },
    { name: "the epoch before is not earlier", when: { start: "parent not earlier" }, action: "refuse" },
  ],
});

export type JournalState = "none" | "unreadable" | "of another volume" | "of this volume";

export const journalTable = new DecisionTable<
  { journal: JournalState; owner: "nobody" | "this journal" | "another journal" },
  "begin" | "replay" | "set aside"
>({
  title: "The local journal against the last owner",
  facts: {
    journal: ["none", "unreadable", "of another volume", "of this volume"],
    owner: ["nobody", "this journal", "another journal"],
  },
  actions: {
    begin: "begin a journal; what is in the directory is removed",
    replay: "read what follows the last record that the store holds (next two tables)",
    "set aside": "keep the files as `*.quarantine`, replay nothing, begin a journal with a new identity",
  },
  rows: [
    { name: "no journal", when: { journal: "none", owner: ["nobody", "another journal"] }, action: "begin" },
    {
      name: "no file of the journal has a header that holds",
      when: { journal: "unreadable", owner: ["nobody", "another journal"] },
      action: "set aside",
    },
    {
      name: "the journal of a deleted volume of the same name",
      when: { journal: "of another volume", owner: ["nobody", "another journal"] },
      action: "begin",
    },
    {
      name: "an identity drawn a moment ago has owned the volume",
      when: { journal: ["none", "unreadable", "of another volume"], owner: "this journal" },
      action: "impossible",
    },
    {
      name: "a journal, and nobody ever started",
      when: { journal: "of this volume", owner: "nobody" },
      action: "replay",
    },
    {
      name: "the journal of the last owner",
      when: { journal: "of this volume", owner: "this journal" },
      action: "replay",
    },
    {
      name: "another has owned the volume since",
      when: { journal: "of this volume", owner: "another journal" },
      action: "set aside",
    },
  ],
});

export const lossTable = new DecisionTable<
  { client: "waits" | "none"; behind: "not looked for" | "nothing" | "files" | "records" },
  "go on" | "refuse"
>({
  title: "What stands behind the end of what can be read, where a device of the kernel has waited for this start",
  facts: { client: ["waits", "none"], behind: ["not looked for", "nothing", "files", "records"] },
  actions: {
    "go on": "as the next table says",
    refuse: "*corrupt*: nothing on the disk is changed; the device answers errors from now on",
  },
  rows: [
    {
      name: "nobody relies on more than was flushed: a loss of power leaves any part of the rest",
      when: { client: "none", behind: "not looked for" },
      action: "go on",
    },
    {
      name: "looked for though nobody waits",
      when: { client: "none", behind: ["nothing", "files", "records"] },
      action: "impossible",
    },
    {
      name: "not looked for though somebody waits",
      when: { client: "waits", behind: "not looked for" },
      action: "impossible",
    },
    {
      name: "the last write was whole, or cut short by the death of its process before it was answered",
      when: { client: "waits", behind: "nothing" },
      action: "go on",
    },
    {
      name: "writes are gone that a waiting client was told of",
      when: { client: "waits", behind: ["files", "records"] },
      action: "refuse",
    },
  ],
});

export const tailTable = new DecisionTable<
  { reading: "cannot begin" | "ends too early" | "reaches the store's end"; behind: "nothing" | "files" },
  "go on" | "go on, set aside what is behind" | "begin behind the store" | "set aside, begin behind the store"
>({
  title: "How far the journal of the last owner can be read",
  facts: {
    reading: ["cannot begin", "ends too early", "reaches the store's end"],
    behind: ["nothing", "files"],
  },
  actions: {
    "go on": "replay what the store lacks, append behind the last record that holds",
    "go on, set aside what is behind": "the same; the files behind are kept as `*.quarantine`",
    "begin behind the store": "replay nothing; the journal begins again with the record after the store's last",
    "set aside, begin behind the store": "the same; all files are kept as `*.quarantine`",
  },
  rows: [
    {
      name: "the journal holds what the store lacks, or nothing is lacking",
      when: { reading: "reaches the store's end", behind: "nothing" },
      action: "go on",
    },
    {
      name: "the journal breaks off before its last file",
      when: { reading: "reaches the store's end", behind: "files" },
      action: "go on, set aside what is behind",
    },
    {
      name: "the disk kept less than the store",
      when: { reading: "ends too early", behind: "nothing" },
      action: "begin behind the store",
    },
    {
      name: "the journal breaks off within what the store holds",
      when: { reading: "ends too early", behind: "files" },
      action: "set aside, begin behind the store",
    },
    {
      name: "the file that should follow the store's last record is not there",
      when: { reading: "cannot begin" },
      action: "set aside, begin behind the store",
    },
  ],
});
