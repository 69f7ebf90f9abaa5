/** How many volumes a node opens, and what the next one is told. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationError } from "../../src/base/errors.ts";
import type { OpenRequest, ServedVolume, VolumeHost } from "../../src/attachment/volume-host.ts";
import { LimitedHost } from "../../src/attachment/volume-limit.ts";
import { mustVolumeId } from "../../src/volume/identity.ts";

const request = (name: string, mode: "take" | "resume" = "take"): OpenRequest => ({
  volumeId: mustVolumeId(name),
  location: { url: "", endpoint: "", region: "" },
  secrets: {},
  mode,
  clientWaits: false,
  readOnly: false,
  durability: "",
  publication: 0,
});

const exhausted = { kind: "exhausted", message: /as many volumes open as it may: detach some volumeId=v3 open=2/ };

function host(volume: Partial<ServedVolume> = {}): LimitedHost {
  const opened = { close: async () => {}, leave: async () => {}, ...volume } as ServedVolume;
  const inner: VolumeHost = {
    open: async ({ volumeId }) => {
      if (volumeId === "missing") throw new OperationError("not-found", "no such volume");
      return opened;
    },
    openBroken: async () => opened,
  };
  return new LimitedHost(inner, 2);
}

test("one volume more than the limit is refused, and taken once another has gone", async () => {
  const limited = host();
  const first = await limited.open(request("v1"));
  const second = await limited.open(request("v2"));
  await assert.rejects(limited.open(request("v3")), exhausted);
  await first.close();
  await first.close();
  const third = await limited.open(request("v3"));
  await assert.rejects(limited.open(request("v3")), exhausted);
  await second.leave();
  await third.leave();
  await limited.open(request("v1"));
  await limited.open(request("v2"));
});

test("volumes that could not be opened, or not be closed, are counted right", async () => {
  let closes = 0;
  const limited = host({
    close: async () => {
      if (++closes === 1) throw new OperationError("unavailable", "the store is away");
    },
  });
  for (let attempt = 0; attempt < 5; attempt += 1) {
    await assert.rejects(limited.open(request("missing")), { kind: "not-found" });
  }
  const first = await limited.open(request("v1"));
  await limited.open(request("v2"));
  await assert.rejects(first.close(), { kind: "unavailable" });
  await assert.rejects(limited.open(request("v3")), exhausted);
  await first.close();
  await limited.open(request("v3"));
});

test("opens that are still under way count", async () => {
  const limited = host();
  const all = await Promise.allSettled(["v1", "v2", "v4", "v5"].map((name) => limited.open(request(name))));
  assert.deepEqual(
    all.map(({ status }) => status),
    ["fulfilled", "fulfilled", "rejected", "rejected"],
  );
});

test("what this node had before a restart is opened beyond the limit", async () => {
  const limited = host();
  for (const name of ["v1", "v2", "v3", "v4"]) await limited.open(request(name, "resume"));
  await assert.rejects(limited.open(request("v5")), { kind: "exhausted" });
});
