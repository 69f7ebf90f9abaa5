/**
 * Tests that need a kernel with nbd. Where this machine has one they run right here; elsewhere the file that defines
 * them runs itself in a guest, which counts as one test and shows its output when it fails.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { machineHasNbd, runInGuest } from "./guest.ts";

export interface KernelTestOptions {
  /** import.meta.url of the file that defines the tests. */
  url: string;
  /** What the tests show, as the name of the one test that runs the guest. */
  name: string;
  timeoutMs?: number;
  memoryMib?: number;
}

/** Call it once a file, as its last statement. `define` declares tests as usual; it runs where nbd is. */
export function kernelTests(options: KernelTestOptions, define: () => void): void {
  if (machineHasNbd()) {
    define();
    return;
  }
  test(`${options.name} (in a User-Mode-Linux guest)`, async () => {
    const { status, output, kernelLog } = await runInGuest({
      ...options,
      command: [process.execPath, fileURLToPath(options.url)],
    });
    assert.equal(status, 0, `the tests in the guest failed:\n${output}\n${kernelLog}`);
  });
}
