/**
 * deploy/s3block-csi.yaml is the chart rendered with the values below, for clusters that are kept without helm.
 * `npm run render` writes it; deploy.test.ts holds it against the chart.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { renderText } from "./helm.ts";

export const deployDirectory = join(import.meta.dirname, "../../deploy");
export const manifestPath = join(deployDirectory, "s3block-csi.yaml");

const values = {
  "store.bucket": "my-bucket",
  "credentials.existingSecret": "s3block-credentials",
};

const header = `# Rendered from charts/s3block-csi: change the chart, not this file (npm run render).
# Before you apply it: replace my-bucket and the image s3block-csi by your bucket and image, and make the namespace and the
# Secret of deploy/examples/.
`;

/** What deploy/s3block-csi.yaml must hold. */
export function renderDeploy(): string {
  const text = renderText(values).split(/^---\n/m);
  const kept = text.filter((document) => document.trim() !== "" && !document.includes("helm.sh/hook: test"));
  return (
    header +
    kept
      .map((document) => `---\n${document}`)
      .join("")
      .replaceAll(/[ \t]+$/gm, "")
  );
}

if (import.meta.main) writeFileSync(manifestPath, renderDeploy());
