/**
 * Runs the helm that test/install/helm.sh put into .cache/bin, on the chart of this repository. No cluster is asked:
 * charts are rendered as for `kubeVersion`, and every output is parsed before a test sees it.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";

export interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string; labels?: Record<string, string>; annotations?: Record<string, string> };
  [field: string]: unknown;
}

export const chartDirectory = join(import.meta.dirname, "../../charts/s3block-csi");
const program = join(import.meta.dirname, "../../.cache/bin/helm");
const kubeVersion = "1.31.0";

/** Standard output of helm; throws with its standard error when it fails. Its state lives in a throw-away directory. */
export function helm(...args: string[]): string {
  const home = mkdtempSync(join(tmpdir(), "s3block-helm-"));
  try {
    return execFileSync(program, args, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 120_000,
      env: { HOME: home, PATH: process.env["PATH"] },
    });
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
}

/** The chart's manifests as text. `values` are given as JSON and beat the chart's own. */
export function renderText(values: object, options: { release?: string; namespace?: string } = {}): string {
  const { release = "s3block-csi", namespace = "s3block-system" } = options;
  const sets = Object.entries(values).flatMap(([key, value]) => ["--set-json", `${key}=${JSON.stringify(value)}`]);
  return helm("template", release, chartDirectory, "--namespace", namespace, "--kube-version", kubeVersion, ...sets);
}

/** Parses a stream of YAML documents strictly: duplicate keys and unknown tags are errors; empty ones are left out. */
export function parseManifests(text: string): Manifest[] {
  return parseAllDocuments(text, { strict: true, uniqueKeys: true })
    .map((document) => {
      if ("errors" in document && document.errors.length > 0) throw document.errors[0];
      return "toJS" in document ? (document.toJS() as Manifest | null) : null;
    })
    .filter((manifest) => manifest !== null);
}

export function render(values: object, options: { release?: string; namespace?: string } = {}): Manifest[] {
  return parseManifests(renderText(values, options));
}
