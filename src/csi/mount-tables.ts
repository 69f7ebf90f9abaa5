/**
 * What NodeStage and NodePublish find of a volume's content and mounts, and what they do about it, as tables. Nothing
 * here acts; node.ts and staged-filesystem.ts do. Names of rows that refuse are what the caller is told.
 *
 * formatTable must never let anything be formatted that may hold data. What allows it is the engine's word that no block
 * was ever written, or the marker of a mkfs of ours that did not end (host/format-marker.ts); blkid's word alone never
 * does.
 */
import { DecisionTable } from "../base/decision-table.ts";

export type FormatAction = "make" | "make again" | "use" | "refuse" | "corrupt";

export const formatTable = new DecisionTable<
  {
    content: "never written" | "mkfs did not end" | "written";
    signature: "nothing" | "the wanted type" | "anything else";
    access: "write" | "read only";
  },
  FormatAction
>({
  title: "What a volume holds that is mounted as a filesystem",
  facts: {
    content: ["never written", "mkfs did not end", "written"],
    signature: ["nothing", "the wanted type", "anything else"],
    access: ["write", "read only"],
  },
  actions: {
    make: "write the marker, make the filesystem, remove the marker, mount",
    "make again": "trim, make the filesystem, remove the marker, mount: nobody ever mounted it",
    use: "check (not where it is read only) and mount",
    refuse: "*in-use*: nothing is changed",
    corrupt: "*corrupt*: nothing is changed",
  },
  rows: [
    {
      name: "a new volume",
      when: { content: "never written", signature: "nothing", access: "write" },
      action: "make",
    },
    {
      name: "the volume has no filesystem yet: publish it for writing once",
      when: { content: "never written", signature: "nothing", access: "read only" },
      action: "refuse",
    },
    {
      name: "a volume that was never written holds data: do not use it, look into it",
      when: { content: "never written", signature: ["the wanted type", "anything else"] },
      action: "corrupt",
    },
    {
      name: "a mkfs that was cut short",
      when: { content: "mkfs did not end", access: "write" },
      action: "make again",
    },
    {
      name: "the volume's filesystem was not finished: publish it for writing once",
      when: { content: "mkfs did not end", access: "read only" },
      action: "refuse",
    },
    { name: "a volume with its filesystem", when: { content: "written", signature: "the wanted type" }, action: "use" },
    {
      name: "the volume holds other data than the wanted filesystem and is not formatted: use another volume",
      when: { content: "written", signature: ["nothing", "anything else"] },
      action: "refuse",
    },
  ],
});

export type MountedForStaging =
  | "nothing"
  | "as wanted"
  | "another type"
  | "other access"
  | "gone read-only"
  | "another volume"
  | "a lost device";

export const stagingTable = new DecisionTable<
  { mounted: MountedForStaging; volume: "free" | "used as a device" },
  "mount" | "done" | "replace" | "refuse" | "unstage first"
>({
  title: "What is mounted at the staging path of an attached volume",
  facts: {
    mounted: [
      "nothing",
      "as wanted",
      "another type",
      "other access",
      "gone read-only",
      "another volume",
      "a lost device",
    ],
    volume: ["free", "used as a device"],
  },
  actions: {
    mount: "look what the volume holds (previous table), mount",
    done: "nothing is left to do",
    replace: "unmount it, then mount",
    refuse: "*conflict*",
    "unstage first": "*in-use*",
  },
  rows: [
    { name: "not staged yet, or half", when: { mounted: "nothing", volume: "free" }, action: "mount" },
    { name: "staged already", when: { mounted: "as wanted", volume: "free" }, action: "done" },
    {
      name: "the volume is staged with another filesystem",
      when: { mounted: "another type", volume: "free" },
      action: "refuse",
    },
    {
      name: "the volume is staged with other access",
      when: { mounted: "other access", volume: "free" },
      action: "refuse",
    },
    {
      name: "the filesystem went read-only after errors of its device: unstage the volume, then stage it again",
      when: { mounted: "gone read-only", volume: "free" },
      action: "unstage first",
    },
    {
      name: "another volume is staged at this path",
      when: { mounted: "another volume", volume: "free" },
      action: "refuse",
    },
    {
      name: "a mount that an attachment which is gone left",
      when: { mounted: "a lost device", volume: "free" },
      action: "replace",
    },
    { name: "the volume is in use as a device", when: { volume: "used as a device" }, action: "refuse" },
  ],
});

export type MountedForPublishing = "nothing" | "as wanted" | "other access" | "something else";

export const publishTable = new DecisionTable<
  {
    volume: "staged" | "not staged" | "used the other way";
    target: MountedForPublishing;
    elsewhere: "no, or allowed" | "yes";
  },
  "bind" | "done" | "refuse" | "stage first" | "unpublish first"
>({
  title: "What is mounted at the target path of a publication",
  facts: {
    volume: ["staged", "not staged", "used the other way"],
    target: ["nothing", "as wanted", "other access", "something else"],
    elsewhere: ["no, or allowed", "yes"],
  },
  actions: {
    bind: "bind the staging path, or the device, to the target",
    done: "nothing is left to do",
    refuse: "*conflict*",
    "stage first": "*in-use*",
    "unpublish first": "*in-use*",
  },
  rows: [
    {
      name: "not published yet",
      when: { volume: "staged", target: "nothing", elsewhere: "no, or allowed" },
      action: "bind",
    },
    { name: "published already", when: { volume: "staged", target: "as wanted" }, action: "done" },
    {
      name: "the volume is published there with other access",
      when: { volume: "staged", target: "other access" },
      action: "refuse",
    },
    {
      name: "something else is mounted there",
      when: { volume: "staged", target: "something else" },
      action: "refuse",
    },
    {
      name: "the volume has a single writer and is published at another path: unpublish it there first",
      when: { volume: "staged", target: "nothing", elsewhere: "yes" },
      action: "unpublish first",
    },
    {
      name: "the volume is not mounted at the staging path",
      when: { volume: "not staged" },
      action: "stage first",
    },
    { name: "the volume is in use with a filesystem", when: { volume: "used the other way" }, action: "refuse" },
  ],
});
