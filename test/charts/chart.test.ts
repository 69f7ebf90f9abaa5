/**
 * The chart: helm's own checks, the schema of its values, and what must hold of the manifests in every combination of
 * values. Flags are read by the program's own parser, parameters by the driver's own, so that the chart cannot name
 * what the program does not have.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { parseArguments } from "../../src/cli/config.ts";
import { flagName, flags } from "../../src/cli/flags.ts";
import type { CommandName, FlagKey } from "../../src/cli/flags.ts";
import { parseParameters } from "../../src/csi/parameters.ts";
import { Metrics } from "../../src/observability/metrics.ts";
import { chartDirectory, helm, render } from "./helm.ts";
import type { Manifest } from "./helm.ts";

interface Container {
  name: string;
  image: string;
  command?: string[];
  args?: string[];
  ports?: { name: string; containerPort: number }[];
  securityContext?: {
    privileged?: boolean;
    readOnlyRootFilesystem?: boolean;
    allowPrivilegeEscalation?: boolean;
    capabilities?: { drop?: string[] };
  };
  volumeMounts?: { name: string; mountPath: string; mountPropagation?: string }[];
  resources?: { requests?: object };
}

interface PodSpec {
  serviceAccountName: string;
  priorityClassName: string;
  hostNetwork?: boolean;
  securityContext: { runAsNonRoot?: boolean; runAsUser: number; seccompProfile: { type: string } };
  initContainers?: Container[];
  containers: Container[];
  volumes: { name: string }[];
}

interface Workload {
  kind: string;
  name: string;
  matchLabels: Record<string, string>;
  labels: Record<string, string>;
  updateStrategy: string | undefined;
  pod: PodSpec;
}

const minimal = { "store.bucket": "bucket" };
const everything = {
  "store.bucket": "bucket",
  "store.prefix": "cluster/one",
  "store.endpoints": ["https://one.example", "http://two.example:9000"],
  "store.pathStyle": true,
  "store.caConfigMap.name": "authority",
  "credentials.accessKeyId": "ID",
  "credentials.secretAccessKey": "SECRET",
  imagePullSecrets: [{ name: "pull" }],
  "serviceAccounts.annotations": { "example.com/role": "storage" },
  "controller.podAnnotations": { a: "b" },
  "node.podAnnotations": { a: "b" },
  "dataPlane.podAnnotations": { a: "b" },
  "dataPlane.cacheSize": 0,
  "dataPlane.deadConnectionTimeoutSeconds": 2_592_000,
  "networkPolicy.enabled": true,
  "serviceMonitor.enabled": true,
  "prometheusRule.enabled": true,
  storageClasses: [
    {
      name: "fast",
      isDefault: true,
      reclaimPolicy: "Retain",
      volumeBindingMode: "WaitForFirstConsumer",
      mountOptions: ["noatime"],
      parameters: {
        bucket: "other",
        prefix: "a/b",
        region: "eu-west-1",
        durability: "local",
        fsType: "xfs",
        blockSize: 512,
      },
      secretName: "other-keys",
      annotations: { note: "text" },
    },
  ],
};
const variants = [
  { name: "minimal values", manifests: render(minimal) },
  { name: "every value", manifests: render(everything) },
];

/** Field `path` of an object, or a failed assertion naming it. */
function field<T>(value: unknown, path: string): T {
  let current = value;
  for (const key of path.split(".")) {
    assert.ok(typeof current === "object" && current !== null && key in current, `there is no ${path}`);
    current = (current as Record<string, unknown>)[key];
  }
  return current as T;
}

function workloads(manifests: readonly Manifest[]): Workload[] {
  return manifests
    .filter(({ kind }) => kind === "Deployment" || kind === "DaemonSet")
    .map((manifest) => ({
      kind: manifest.kind,
      name: manifest.metadata.name,
      matchLabels: field(manifest, "spec.selector.matchLabels"),
      labels: field(manifest, "spec.template.metadata.labels"),
      updateStrategy: (manifest["spec"] as { updateStrategy?: { type: string } }).updateStrategy?.type,
      pod: field(manifest, "spec.template.spec"),
    }));
}

function allContainers({ pod }: Workload): Container[] {
  return [...(pod.initContainers ?? []), ...pod.containers];
}

/** The containers that run this program, with the command that their first argument names. */
function programs(manifests: readonly Manifest[]): { command: CommandName; args: string[]; container: Container }[] {
  const commands: readonly string[] = ["controller", "server", "node"];
  return workloads(manifests)
    .flatMap(({ pod }) => pod.containers)
    .filter(({ args }) => commands.includes(args?.[0] ?? ""))
    .map((container) => {
      const [command, ...args] = container.args ?? [];
      return { command: command as CommandName, args, container };
    });
}

function ofKind(manifests: readonly Manifest[], kind: string): Manifest[] {
  return manifests.filter((manifest) => manifest.kind === kind);
}

test("helm lints the chart without a warning", () => {
  const output = helm("lint", "--strict", chartDirectory, "--set", "store.bucket=bucket");
  assert.match(output, /0 chart\(s\) failed/);
  assert.doesNotMatch(output, /WARNING|ERROR/);
});

test("the chart and the program have one version", () => {
  const manifest = JSON.parse(readFileSync(join(chartDirectory, "../../package.json"), "utf8")) as { version: string };
  const chart = parse(readFileSync(join(chartDirectory, "Chart.yaml"), "utf8")) as Record<string, string>;
  assert.deepEqual([chart["version"], chart["appVersion"]], [manifest.version, manifest.version]);
});

for (const [what, values, message] of [
  ["no bucket", {}, /store\.bucket is required/],
  ["an unknown value", { ...minimal, "store.buckt": "x" }, /additional properties 'buckt' not allowed/],
  [
    "a parameter that the driver does not have",
    { ...minimal, storageClasses: [{ name: "a", parameters: { size: "x" } }] },
    /'size' not allowed/,
  ],
  ["an access key without its secret", { ...minimal, "credentials.accessKeyId": "ID" }, /secretAccessKey is required/],
  ["a bucket that cannot be one", { "store.bucket": "Not A Bucket" }, /store\/bucket/],
] as const) {
  test(`${what} is refused by name`, () => {
    assert.throws(() => render(values), message);
  });
}

test("every value is described by the schema and by a comment or its name", () => {
  const schema = JSON.parse(readFileSync(join(chartDirectory, "values.schema.json"), "utf8")) as object;
  const values = parse(readFileSync(join(chartDirectory, "values.yaml"), "utf8"), { merge: true }) as object;
  const missing: string[] = [];
  const walk = (value: unknown, node: unknown, path: string): void => {
    const properties = (node as { properties?: Record<string, unknown> }).properties;
    if (typeof value !== "object" || value === null || Array.isArray(value) || properties === undefined) return;
    for (const [key, inner] of Object.entries(value)) {
      if (properties[key] === undefined) missing.push(`${path}${key}`);
      else walk(inner, properties[key], `${path}${key}.`);
    }
    for (const key of Object.keys(properties))
      if (!(key in value) && key !== "global") missing.push(`${path}${key} (schema only)`);
  };
  walk(values, schema, "");
  assert.deepEqual(missing, []);
});

for (const { name, manifests } of variants) {
  test(`${name}: the three processes run, each with flags that the program takes`, () => {
    const found = programs(manifests);
    assert.deepEqual(found.map(({ command }) => command).toSorted(), ["controller", "node", "server"]);
    for (const { command, args } of found) {
      const parsed = parseArguments(command, args, {});
      assert.deepEqual(parsed.positional, [], `${command} takes no arguments that are not flags`);
      assert.equal(parsed.help, false);
    }
  });

  test(`${name}: every pod selects itself, names an account that exists and mounts volumes that exist`, () => {
    const accounts = ofKind(manifests, "ServiceAccount").map(({ metadata }) => metadata.name);
    const found = workloads(manifests);
    assert.equal(found.length, 3);
    for (const workload of found) {
      for (const [key, value] of Object.entries(workload.matchLabels)) assert.equal(workload.labels[key], value);
      assert.ok(accounts.includes(workload.pod.serviceAccountName), workload.name);
      const volumes = workload.pod.volumes.map((volume) => volume.name);
      assert.equal(new Set(volumes).size, volumes.length, `${workload.name} has a volume twice`);
      const mounted = new Set(
        allContainers(workload).flatMap(({ volumeMounts = [] }) => volumeMounts.map((mount) => mount.name)),
      );
      assert.deepEqual(
        [...mounted].toSorted(),
        volumes.toSorted(),
        `${workload.name}: mounted and defined volumes differ`,
      );
    }
  });

  test(`${name}: containers have a pinned image, requests, a read-only root and no privilege that they can spare`, () => {
    const privileged: string[] = [];
    for (const workload of workloads(manifests)) {
      assert.equal(workload.pod.securityContext.seccompProfile.type, "RuntimeDefault");
      for (const container of allContainers(workload)) {
        const where = `${workload.name}/${container.name}`;
        assert.match(container.image, /:v?\d+\.\d+\.\d+$/, where);
        assert.ok(container.resources?.requests !== undefined, where);
        const context = container.securityContext;
        assert.equal(context?.readOnlyRootFilesystem, true, where);
        if (context?.privileged === true) privileged.push(container.name);
        else
          assert.deepEqual([context?.allowPrivilegeEscalation, context?.capabilities?.drop], [false, ["ALL"]], where);
      }
    }
    assert.deepEqual(privileged.toSorted(), ["kernel-module", "kernel-module", "node", "server"]);
  });

  test(`${name}: the controller is not root and runs twice with a disruption budget`, () => {
    const deployment = ofKind(manifests, "Deployment")[0];
    const pod = field<PodSpec>(deployment, "spec.template.spec");
    assert.equal(pod.securityContext.runAsNonRoot, true);
    assert.notEqual(pod.securityContext.runAsUser, 0);
    assert.equal(pod.priorityClassName, "system-cluster-critical");
    assert.equal(field(deployment, "spec.replicas"), 2);
    assert.equal(ofKind(manifests, "PodDisruptionBudget").length, 1);
    assert.ok(field<object>(deployment, "spec.template.spec.affinity.podAntiAffinity"));
  });

  test(`${name}: the data plane is replaced on demand alone, on the host's network, by the socket the node uses`, () => {
    const [controller, plane, node] = workloads(manifests).toSorted((a, b) => (a.name < b.name ? -1 : 1));
    assert.deepEqual([plane.updateStrategy, node.updateStrategy], ["OnDelete", "RollingUpdate"]);
    assert.deepEqual(
      [controller.pod.hostNetwork, plane.pod.hostNetwork, node.pod.hostNetwork],
      [undefined, true, undefined],
    );
    assert.equal(plane.pod.priorityClassName, "system-node-critical");
    const socket = (command: CommandName): string => {
      const program = programs(manifests).find((candidate) => candidate.command === command);
      assert.ok(program !== undefined);
      return parseArguments(command, program.args, {}).values.controlSocket;
    };
    assert.equal(socket("node"), socket("server"));
    const kubelet = node.pod.containers[0].volumeMounts?.find((mount) => mount.mountPropagation === "Bidirectional");
    assert.equal(kubelet?.mountPath, "/var/lib/kubelet");
  });

  test(`${name}: cluster roles never reach Secrets, and no role has a wildcard`, () => {
    const roles = manifests.filter(({ kind }) => kind === "ClusterRole" || kind === "Role");
    assert.equal(ofKind(manifests, "ClusterRole").length, 2);
    for (const role of roles) {
      for (const rule of field<{ resources: string[]; verbs: string[]; resourceNames?: string[] }[]>(role, "rules")) {
        assert.ok(![...rule.resources, ...rule.verbs].includes("*"), role.metadata.name);
        if (!rule.resources.includes("secrets")) continue;
        assert.equal(role.kind, "Role");
        assert.deepEqual([rule.verbs, rule.resourceNames], [["get"], ["other-keys"]]);
      }
    }
  });

  test(`${name}: the driver accepts the parameters of every StorageClass`, () => {
    const driver = ofKind(manifests, "CSIDriver")[0];
    assert.deepEqual(field(driver, "spec.attachRequired"), true);
    const classes = ofKind(manifests, "StorageClass");
    assert.ok(classes.length > 0);
    for (const storageClass of classes) {
      assert.equal(storageClass["provisioner"], driver.metadata.name);
      parseParameters(field<Record<string, string>>(storageClass, "parameters"));
    }
  });

  test(`${name}: namespaced objects are in the namespace of the release and carry its labels`, () => {
    const clusterWide = new Set(["ClusterRole", "ClusterRoleBinding", "CSIDriver", "StorageClass"]);
    for (const { kind, metadata } of manifests) {
      assert.equal(
        metadata.namespace,
        clusterWide.has(kind) ? undefined : "s3block-system",
        `${kind} ${metadata.name}`,
      );
      assert.equal(metadata.labels?.["app.kubernetes.io/instance"], "s3block-csi", `${kind} ${metadata.name}`);
    }
  });
}

test("two StorageClasses are there by default: durable in S3, and local", () => {
  const classes = ofKind(variants[0].manifests, "StorageClass");
  assert.deepEqual(
    classes.map((storageClass) => [storageClass.metadata.name, field(storageClass, "parameters.durability")]),
    [
      ["s3block", "s3"],
      ["s3block-local", "local"],
    ],
  );
});

test("keys that are given become a Secret; an existing Secret or none makes none", () => {
  const flag = "--s3-credentials-file=/etc/s3block/credentials/credentials";
  for (const [values, secrets, mounted] of [
    [{ "credentials.accessKeyId": "ID", "credentials.secretAccessKey": "SECRET" }, 1, true],
    [{ "credentials.existingSecret": "mine" }, 0, true],
    [{}, 0, false],
  ] as const) {
    const manifests = render({ ...minimal, ...values });
    assert.equal(ofKind(manifests, "Secret").length, secrets);
    for (const { args } of programs(manifests)) assert.equal(args.includes(flag), mounted);
    const outside = manifests.filter(({ kind }) => kind !== "Secret");
    assert.ok(!JSON.stringify(outside).includes("SECRET"), "a key stands outside of the Secret");
  }
});

test("every flag of the data plane that has a default in the chart has the program's default", () => {
  const server = programs(variants[0].manifests).find(({ command }) => command === "server");
  assert.ok(server !== undefined);
  const chosen = new Set(["store", "node-id", "metrics-address", "shutdown-seconds", "standby"]);
  for (const argument of server.args) {
    const [name = "", value] = argument.slice(2).split("=");
    const key = (Object.keys(flags) as FlagKey[]).find((candidate) => flagName(candidate) === name);
    assert.ok(key !== undefined, argument);
    if (!chosen.has(name) && "default" in flags[key]) assert.equal(value, String(flags[key].default), argument);
  }
});

test("alerts ask for metrics that exist and name a chapter of the runbook", async () => {
  const rules = ofKind(variants[1].manifests, "PrometheusRule")[0];
  const alerts = field<{ rules: { alert: string; expr: string; annotations: { runbook: string } }[] }[]>(
    rules,
    "spec.groups",
  )[0].rules;
  const metrics = new Metrics();
  const names = new Set((await metrics.snapshot()).map((metric) => field<string>(metric, "name")));
  const chapters = readFileSync(join(chartDirectory, "../../docs/operations.md"), "utf8").toLowerCase();
  assert.ok(alerts.length > 0);
  for (const { alert, expr, annotations } of alerts) {
    const asked = expr.match(/s3block_[a-z_]+/g) ?? [];
    assert.ok(asked.length > 0 && asked.every((name) => names.has(name)), `${alert}: ${asked.join(", ")}`);
    assert.equal(annotations.runbook, `docs/operations.md#${alert.toLowerCase()}`);
    assert.ok(chapters.includes(`### ${alert.toLowerCase()}\n`), `docs/operations.md has no chapter ${alert}`);
  }
});

test("a release of another name can live beside it", () => {
  const first = render(minimal);
  const second = render({ ...minimal, driverName: "other.example" }, { release: "two", namespace: "other" });
  const names = (manifests: Manifest[]): string[] =>
    manifests.filter(({ kind }) => kind !== "StorageClass").map(({ kind, metadata }) => `${kind} ${metadata.name}`);
  const shared = names(first).filter((name) => names(second).includes(name));
  assert.deepEqual(shared, []);
});
