/** Runs csi-sanity (test/install/csi-sanity.sh) against plugins that serve already. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

const program = join(import.meta.dirname, "../../.cache/bin/csi-sanity");

export interface SanityRun {
  controllerSocket: string;
  nodeSocket: string;
  /** An existing directory below the kubelet's, for staging and target paths. */
  directory: string;
  access: "mount" | "block";
  /** Of the StorageClass. */
  parameters: Readonly<Record<string, string>>;
  /** Only tests whose name matches this expression. */
  focus?: string;
  timeoutMs?: number;
}

export interface SanityResult {
  passed: number;
  failed: number;
  /** What it wrote, for a failed assertion. */
  output: string;
}

/** Throws where csi-sanity is not installed or says nothing of its result. */
export async function runSanity(options: SanityRun): Promise<SanityResult> {
  if (!existsSync(program)) throw new Error("csi-sanity is missing: run test/install/csi-sanity.sh");
  const parameters = join(options.directory, "parameters.yaml");
  const lines = Object.entries(options.parameters).map(([key, value]) => `${key}: ${JSON.stringify(value)}`);
  await writeFile(parameters, lines.length === 0 ? "{}\n" : `${lines.join("\n")}\n`);
  const flags = {
    "csi.endpoint": options.nodeSocket,
    "csi.controllerendpoint": options.controllerSocket,
    "csi.mountdir": join(options.directory, "target"),
    "csi.stagingdir": join(options.directory, "staging"),
    "csi.testvolumeaccesstype": options.access,
    "csi.testvolumeparameters": parameters,
    "csi.testvolumesize": String(1024 ** 3),
    "ginkgo.seed": "1",
    "ginkgo.focus": options.focus ?? "",
  };
  const args = [...Object.entries(flags).map(([name, value]) => `-${name}=${value}`), "-ginkgo.no-color"];
  const output = await new Promise<string>((resolve) => {
    execFile(program, args, { timeout: options.timeoutMs ?? 120_000, maxBuffer: 1 << 26 }, (_error, stdout, stderr) =>
      resolve(`${stdout}${stderr}`),
    );
  });
  const [, passed, failed] = /(\d+) Passed \| (\d+) Failed/.exec(output) ?? [];
  if (passed === undefined) throw new Error(`csi-sanity did not finish:\n${output}`);
  return { passed: Number(passed), failed: Number(failed), output };
}
