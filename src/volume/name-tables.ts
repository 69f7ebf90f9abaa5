/**
 * Who has a name, and how a deletion gives it back, as tables. Nothing here acts: names.ts looks up and does what the
 * row says. Why it is safe against requests that take effect late: docs/decisions/0002-names-that-come-back.md.
 */
import { DecisionTable } from "../base/decision-table.ts";

export type ConfirmationState = "none" | "confirmed" | "refused";

export const nameTable = new DecisionTable<
  { tombstone: "no" | "yes"; place: "the highest" | "below another"; confirmation: ConfirmationState },
  "in force" | "leftover" | "confirm" | "refuse"
>({
  title: "A record that binds a name to a volume, from the highest number down",
  facts: {
    tombstone: ["no", "yes"],
    place: ["the highest", "below another"],
    confirmation: ["none", "confirmed", "refused"],
  },
  actions: {
    "in force": "this volume has the name",
    leftover: "nobody's; look at the next one",
    confirm: "nobody's for a reader; a creation or a deletion confirms it, and goes on with what stands then",
    refuse: "nobody's for a reader; a creation or a deletion refuses it, and goes on with what stands then",
  },
  rows: [
    { name: "a deletion has freed the name from it", when: { tombstone: "yes" }, action: "leftover" },
    {
      name: "the volume was created and not deleted",
      when: { tombstone: "no", confirmation: "confirmed" },
      action: "in force",
    },
    {
      name: "the record came too late to count",
      when: { tombstone: "no", confirmation: "refused" },
      action: "leftover",
    },
    {
      name: "its creator is not done yet, or died",
      when: { tombstone: "no", place: "the highest", confirmation: "none" },
      action: "confirm",
    },
    {
      name: "it has come late, or something late has come above it",
      when: { tombstone: "no", place: "below another", confirmation: "none" },
      action: "refuse",
    },
  ],
});

export const releaseTable = new DecisionTable<
  {
    name: "bound to the volume" | "freed by a tombstone" | "not bound to it";
    removal: "not asked" | "created by this call" | "there before";
    request: "not sent" | "sent";
  },
  "create the removal" | "delete" | "put a tombstone" | "clear" | "done"
>({
  title: "The end of a deletion: giving the name back",
  facts: {
    name: ["bound to the volume", "freed by a tombstone", "not bound to it"],
    removal: ["not asked", "created by this call", "there before"],
    request: ["not sent", "sent"],
  },
  actions: {
    "create the removal": "create the volume's removal record, then look at the name again",
    delete: "delete the record by one request that is never repeated, then look at the name again",
    "put a tombstone": "put a tombstone above all records of the name, then look again",
    clear: "delete the record, however often: its number is never used again",
    done: "remove what is left under the uid",
  },
  rows: [
    {
      name: "nobody is known to remove the record",
      when: { name: "bound to the volume", removal: "not asked", request: "not sent" },
      action: "create the removal",
    },
    {
      name: "this call alone may delete the record, and has not yet",
      when: { name: "bound to the volume", removal: "created by this call", request: "not sent" },
      action: "delete",
    },
    {
      name: "another call may have sent the one request, or is about to",
      when: { name: "bound to the volume", removal: "there before", request: "not sent" },
      action: "put a tombstone",
    },
    {
      name: "the one request was sent and may still take effect",
      when: { name: "bound to the volume", removal: "created by this call", request: "sent" },
      action: "put a tombstone",
    },
    {
      name: "the one request was sent without a right to it",
      when: { name: "bound to the volume", removal: ["not asked", "there before"], request: "sent" },
      action: "impossible",
    },
    { name: "a tombstone has freed the name", when: { name: "freed by a tombstone" }, action: "clear" },
    { name: "the record is gone", when: { name: "not bound to it" }, action: "done" },
  ],
});
