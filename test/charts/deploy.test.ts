/** deploy/ holds what the chart renders, and examples that fit it. */
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { deployDirectory, manifestPath, renderDeploy } from "./deploy.ts";
import { parseManifests } from "./helm.ts";
import type { Manifest } from "./helm.ts";

function manifestsOf(path: string): Manifest[] {
  return parseManifests(readFileSync(path, "utf8"));
}

test("deploy/s3block-csi.yaml is what the chart renders (else: npm run render)", () => {
  assert.equal(readFileSync(manifestPath, "utf8"), renderDeploy());
});

test("the examples name the StorageClass, the Secret and the namespace of the manifests", () => {
  const manifests = manifestsOf(manifestPath);
  const folder = join(deployDirectory, "examples");
  const examples = readdirSync(folder).flatMap((file) => manifestsOf(join(folder, file)));
  const classes = manifests.filter(({ kind }) => kind === "StorageClass").map(({ metadata }) => metadata.name);
  const claims = examples.filter(({ kind }) => kind === "PersistentVolumeClaim");
  assert.ok(claims.length >= 2);
  for (const claim of claims) {
    assert.ok(classes.includes((claim["spec"] as { storageClassName: string }).storageClassName));
  }
  const used = JSON.stringify(examples.filter(({ kind }) => kind === "Pod"));
  for (const { metadata } of claims) assert.ok(used.includes(`"claimName":"${metadata.name}"`), metadata.name);
  const [secret] = examples.filter(({ kind }) => kind === "Secret");
  assert.ok(JSON.stringify(manifests).includes(`"secretName":"${secret.metadata.name}"`));
  const [namespace] = manifestsOf(join(deployDirectory, "namespace.yaml"));
  assert.equal(secret.metadata.namespace, namespace.metadata.name);
  assert.ok(
    manifests.every(
      ({ metadata }) => metadata.namespace === undefined || metadata.namespace === namespace.metadata.name,
    ),
  );
});
