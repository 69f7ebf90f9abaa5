/**
 * One claim driven the way Kubernetes drives it: create, publish to a node, stage, publish to a pod, and back. Every
 * step may be repeated; `insist` repeats it as sidecars and the kubelet do.
 */
import { mkdir } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { status as code, type ServiceError } from "@grpc/grpc-js";
import type { Cluster, ClusterNode } from "./cluster.ts";

export interface ClaimOptions {
  name: string;
  /** Default "ext4". */
  use?: "ext4" | "xfs" | "block";
  /** Default 320 MiB: the least that xfs takes, and a little. */
  sizeBytes?: number;
  /** Of the StorageClass. */
  parameters?: Readonly<Record<string, string>>;
  secrets?: Readonly<Record<string, string>>;
}

export class Claim {
  readonly options: ClaimOptions;
  readonly #cluster: Cluster;
  volumeId = "";
  publishContext: Record<string, string> = {};
  /** Where it is used, or was last. */
  node: ClusterNode;

  constructor(cluster: Cluster, options: ClaimOptions) {
    this.options = options;
    this.#cluster = cluster;
    this.node = cluster.nodes[0];
  }

  get staging(): string {
    return `${this.node.kubeletDir}/${this.options.name}-staging`;
  }

  /** What the pod sees: a directory, or a device's node. */
  get target(): string {
    return `${this.node.kubeletDir}/${this.options.name}-target`;
  }

  get capability(): object {
    const { use = "ext4" } = this.options;
    const access = use === "block" ? { block: {} } : { mount: { fsType: use } };
    return { ...access, accessMode: { mode: "SINGLE_NODE_WRITER" } };
  }

  async create(): Promise<void> {
    const { name, sizeBytes = 320 * 1024 ** 2, parameters = {}, secrets = {} } = this.options;
    const capacityRange = { requiredBytes: String(sizeBytes) };
    const request = { name, volumeCapabilities: [this.capability], capacityRange, parameters, secrets };
    const answer = await this.#controller<{ volume: { volumeId: string } }>("createVolume", request);
    this.volumeId = answer.volume.volumeId;
  }

  async publish(): Promise<void> {
    const request = {
      volumeId: this.volumeId,
      nodeId: this.node.id,
      volumeCapability: this.capability,
      secrets: this.#secrets,
    };
    const answer = await this.#controller<{ publishContext: Record<string, string> }>(
      "controllerPublishVolume",
      request,
    );
    this.publishContext = answer.publishContext;
  }

  async stage(): Promise<void> {
    await mkdir(this.staging, { recursive: true });
    await this.#node("nodeStageVolume");
  }

  async publishToPod(): Promise<void> {
    await this.#node("nodePublishVolume");
  }

  async unpublishFromPod(): Promise<void> {
    await this.#node("nodeUnpublishVolume");
  }

  async unstage(): Promise<void> {
    await this.#node("nodeUnstageVolume");
  }

  async unpublish(): Promise<void> {
    await this.#controller("controllerUnpublishVolume", {
      volumeId: this.volumeId,
      nodeId: this.node.id,
      secrets: this.#secrets,
    });
  }

  async delete(): Promise<void> {
    await this.#controller("deleteVolume", { volumeId: this.volumeId, secrets: this.#secrets });
  }

  /** Steps from a created volume to one that a pod uses, and back. */
  up(): (() => Promise<void>)[] {
    return [() => this.publish(), () => this.stage(), () => this.publishToPod()];
  }

  down(): (() => Promise<void>)[] {
    return [() => this.unpublishFromPod(), () => this.unstage(), () => this.unpublish()];
  }

  /** Created where it is not, and used by a pod. */
  async bringUp(): Promise<void> {
    if (this.volumeId === "") await insist(() => this.create());
    for (const step of this.up()) await insist(step);
  }

  /** Used by nobody, and kept. */
  async bringDown(): Promise<void> {
    for (const step of this.down()) await insist(step);
  }

  async remove(): Promise<void> {
    await this.bringDown();
    await insist(() => this.delete());
  }

  get #secrets(): Readonly<Record<string, string>> {
    return this.options.secrets ?? {};
  }

  #controller<T>(method: string, request: object): Promise<T> {
    return this.#cluster.controllerClient.call<T>("Controller", method, request);
  }

  async #node(method: string): Promise<void> {
    const { volumeId, publishContext, capability: volumeCapability, staging, target } = this;
    const paths = { stagingTargetPath: staging, targetPath: target };
    const request = { volumeId, publishContext, volumeCapability, secrets: this.#secrets, ...paths };
    await this.node.client.call("Node", method, request);
  }
}

const passing: readonly number[] = [code.UNAVAILABLE, code.ABORTED, code.DEADLINE_EXCEEDED];

/** Repeats the step until its answer is another than "ask again". */
export async function insist(step: () => Promise<void>): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await step();
      return;
    } catch (error) {
      if (attempt > 200 || !passing.includes((error as ServiceError).code)) throw error;
      await sleep(100);
    }
  }
}

/** The code and text of the error that the step must end with. */
export async function refusal(step: () => Promise<unknown>): Promise<{ code: string; text: string }> {
  try {
    await step();
  } catch (error) {
    const { code: number, details } = error as ServiceError;
    return { code: code[number], text: details };
  }
  throw new Error("the step was to be refused and was not");
}
