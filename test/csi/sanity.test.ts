/** csi-sanity, all suites of what is served, against real mounts on loop devices: ext4, xfs and raw block. */
import assert from "node:assert/strict";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { LoopDataPlane } from "./loop-data-plane.ts";
import { loopTests } from "./loop-tests.ts";
import { startTestController, startTestNode } from "./plugins.ts";
import { runSanity } from "./run-sanity.ts";

const variants: { name: string; access: "mount" | "block"; parameters: Record<string, string> }[] = [
  { name: "ext4", access: "mount", parameters: {} },
  { name: "xfs on a local journal", access: "mount", parameters: { fsType: "xfs", durability: "local" } },
  { name: "a raw device in another bucket", access: "block", parameters: { bucket: "another-bucket" } },
];

function definitions(): void {
  for (const { name, access, parameters } of variants) {
    test(`csi-sanity passes with ${name}`, async () => {
      const dataPlane = new LoopDataPlane(await mkdtemp(join(tmpdir(), "s3block-sanity-")), 1024 ** 3);
      const controller = await startTestController();
      const node = await startTestNode(dataPlane);
      try {
        const sockets = { controllerSocket: controller.socketPath, nodeSocket: node.socketPath };
        const result = await runSanity({ ...sockets, directory: node.kubeletDir, access, parameters });
        assert.equal(result.failed, 0, result.output);
        assert.ok(result.passed >= 45, `only ${result.passed} of its tests ran`);
      } finally {
        await node.close();
        await controller.close();
        await dataPlane.close();
      }
    });
  }
}

await loopTests(
  { url: import.meta.url, name: "csi-sanity passes with ext4, xfs and raw devices", timeoutMs: 840_000 },
  definitions,
);
