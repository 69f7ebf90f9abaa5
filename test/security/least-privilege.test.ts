/**
 * What the chart gives each pod is what it needs and no more: host namespaces, directories of the host, the cluster's
 * token, keys. Privileges of containers and roles are held in test/charts/chart.test.ts.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { render } from "../charts/helm.ts";
import type { Manifest } from "../charts/helm.ts";

interface Volume {
  name: string;
  hostPath?: { path: string };
  secret?: { defaultMode: number; secretName: string };
}

interface Container {
  name: string;
  env?: { name: string; value?: string; valueFrom?: object }[];
  envFrom?: object[];
  ports?: { hostPort?: number }[];
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean }[];
}

interface Pod {
  hostNetwork?: boolean;
  hostPID?: boolean;
  hostIPC?: boolean;
  shareProcessNamespace?: boolean;
  serviceAccountName: string;
  initContainers?: Container[];
  containers: Container[];
  volumes: Volume[];
}

const manifests = render({
  "store.bucket": "bucket",
  "credentials.accessKeyId": "CANARYID",
  "credentials.secretAccessKey": "CANARYSECRET",
});

function podsOf(all: readonly Manifest[]): Map<string, Pod> {
  const found = all.filter(({ kind }) => ["Deployment", "DaemonSet"].includes(kind));
  const pods = found.map((manifest): [string, Pod] => {
    const { template } = manifest["spec"] as { template: { spec: Pod } };
    return [manifest.metadata.name.replace("s3block-csi-", ""), template.spec];
  });
  return new Map(pods);
}

const pods = podsOf(manifests);
const containersOf = (pod: Pod): Container[] => [...(pod.initContainers ?? []), ...pod.containers];

test("no pod sees the host's processes or memory, and the data plane alone its network", () => {
  assert.deepEqual([...pods.keys()].toSorted(), ["controller", "data-plane", "node"]);
  for (const [name, pod] of pods) {
    assert.deepEqual([pod.hostPID, pod.hostIPC, pod.shareProcessNamespace], [undefined, undefined, undefined], name);
    assert.equal(pod.hostNetwork ?? false, name === "data-plane", name);
    for (const { ports = [] } of containersOf(pod)) assert.ok(ports.every(({ hostPort }) => hostPort === undefined));
  }
});

test("directories of the host are those that each pod works on", () => {
  const hostPaths = (name: string): string[] =>
    (pods.get(name)?.volumes ?? [])
      .flatMap(({ hostPath }) => (hostPath === undefined ? [] : [hostPath.path]))
      .toSorted();
  assert.deepEqual(hostPaths("controller"), []);
  assert.deepEqual(hostPaths("data-plane"), ["/dev", "/lib/modules", "/run/s3block", "/var/lib/s3block"]);
  assert.deepEqual(hostPaths("node"), [
    "/dev",
    "/lib/modules",
    "/run/s3block",
    "/var/lib/kubelet",
    "/var/lib/kubelet/plugins/s3block.csi",
    "/var/lib/kubelet/plugins_registry",
  ]);
});

test("only the controller's pod has a token of the cluster", () => {
  for (const [name, pod] of pods) {
    const account = manifests.find(
      ({ kind, metadata }) => kind === "ServiceAccount" && metadata.name === pod.serviceAccountName,
    );
    assert.equal(account?.["automountServiceAccountToken"], name === "controller", name);
  }
});

test("keys reach the three programs alone, as a file that can only be read, never by environment or argument", () => {
  const readers: string[] = [];
  for (const pod of pods.values()) {
    const secrets = pod.volumes.filter(({ secret }) => secret !== undefined);
    assert.ok(secrets.every(({ secret }) => ((secret?.defaultMode ?? 0o777) & 0o007) === 0));
    for (const container of containersOf(pod)) {
      assert.equal(container.envFrom, undefined);
      assert.ok(!JSON.stringify(container.env ?? []).includes("secretKeyRef"), container.name);
      for (const mount of container.volumeMounts ?? []) {
        if (!secrets.some(({ name }) => name === mount.name)) continue;
        assert.equal(mount.readOnly, true);
        readers.push(container.name);
      }
    }
  }
  assert.deepEqual(readers.toSorted(), ["controller", "node", "server"]);
  const others = manifests.filter(({ kind }) => kind !== "Secret");
  assert.doesNotMatch(JSON.stringify(others), /CANARY/);
});
