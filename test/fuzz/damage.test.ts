/**
 * Slices of the long runs that damage what is stored (campaigns.ts): journal tails, objects, parts of the cache. Each is
 * also held against a damage that must be noticed, so that it can fail.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { damageCache } from "./campaigns/cache-parts.ts";
import { damageTails } from "./campaigns/journal-tails.ts";
import { damageObjects } from "./campaigns/stored-objects.ts";
import { buildStoredVolume, readStoredVolume, TrialStore } from "./campaigns/stored-volume.ts";
import { cacheFiles, servedParts, someParts } from "./targets/cache.ts";

test("a journal cut short anywhere, or with any bit turned, gives exactly the records before", async () => {
  const { cuts, flips, shortened } = await damageTails({ seed: 1, cuts: 64, flips: 64 });
  assert.equal(cuts + flips, 128);
  assert.ok(shortened > 180, `only ${shortened} trials cost a record`);
});

test("objects that are rotten, swapped or rolled back are found, and no block of the volume is wrong", async () => {
  const { trials, foundInObject, refused } = await damageObjects({ seed: 1, trials: 120 });
  assert.equal(foundInObject, trials);
  assert.ok(refused > 20, `only ${refused} trials reached the volume`);
});

test("a map object in the place of a newer one that looks the same does not bring old blocks back", async () => {
  const { objects, blocks } = await buildStoredVolume(1);
  const [, second, third] = [...objects.keys()].filter((key) => key.includes("/map/"));
  assert.equal(objects.get(second)!.length, objects.get(third)!.length);
  const store = new TrialStore(objects);
  store.replace(third, objects.get(second)!);
  const { right, refused, wrong } = await readStoredVolume(store, blocks);
  assert.deepEqual(wrong, []);
  assert.deepEqual([right, refused], [24, 12]);
});

test("the volume of the trials is read whole where nothing is damaged, and a wrong block is noticed", async () => {
  const { objects, blocks } = await buildStoredVolume(2);
  const whole = await readStoredVolume(new TrialStore(objects), blocks);
  assert.deepEqual([whole.right, whole.refused, whole.wrong.length], [36, 0, 0]);
  const changed = new Map(blocks).set(0, Buffer.alloc(4096, 1));
  assert.deepEqual((await readStoredVolume(new TrialStore(objects), changed)).wrong, [0]);
});

test("parts of the cache that are rotten, exchanged or rolled back are never served, all others are", async () => {
  const { trials, damagedParts } = await damageCache({ seed: 1, trials: 60 });
  assert.ok(damagedParts > trials);
  const parts = someParts(4, 1);
  assert.equal(await servedParts(await cacheFiles(parts), parts), 4);
});
