/** Tests that need loop devices and mounts: here where this process may, else in the guest of test/kernel. */
import { kernelTests, type KernelTestOptions } from "../kernel/kernel-tests.ts";
import { canUseLoopDevices } from "./loop-data-plane.ts";

/** Call it once a file, as its last statement. */
export async function loopTests(options: KernelTestOptions, define: () => void): Promise<void> {
  if (await canUseLoopDevices()) define();
  else kernelTests(options, define);
}
