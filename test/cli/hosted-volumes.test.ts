/** What the metrics show of a volume that may not be served. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { openBrokenVolume } from "../../src/cli/hosted-volumes.ts";
import { Metrics } from "../../src/observability/metrics.ts";
import type { VolumeId } from "../../src/volume/identity.ts";
import { StillClock } from "../volume/still-clock.ts";

test("a device that answers errors counts as failed until it is detached, and its errors are counted", async () => {
  const metrics = new Metrics();
  const request = { sizeBytes: 65_536, blockSizeBytes: 4096, readOnly: false, failure: "the journal was damaged" };
  const volume = openBrokenVolume({ metrics, clock: new StillClock() }, { ...request, volumeId: "vol-1" as VolumeId });
  assert.throws(() => volume.device.read(0, Buffer.alloc(4096)), /the journal was damaged/);
  const text = await Metrics.expose([await metrics.snapshot()]);
  assert.match(text, /^s3block_volume_failed\{volume="vol-1"\} 1$/m);
  assert.match(text, /^s3block_volume_operation_errors_total\{volume="vol-1",operation="read"\} 1$/m);
  await volume.close();
  assert.doesNotMatch(await Metrics.expose([await metrics.snapshot()]), /vol-1/);
});
