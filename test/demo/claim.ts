/**
 * One claim, driven over CSI as Kubernetes drives it: the calls of the external provisioner and attacher to the
 * controller, those of the kubelet to a node, in their order, again while the answer is "ask again".
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { status as code } from "@grpc/grpc-js";
import { CsiClient } from "../csi/csi-client.ts";
import type { DemoNode } from "./processes.ts";

const volumeCapability = { mount: { fsType: "ext4" }, accessMode: { mode: "SINGLE_NODE_WRITER" } };
const retryMs = 200;
const defaultDeadlineMs = 120_000;

export class Claim {
  readonly name: string;
  /** Empty where there is none. */
  volumeId = "";
  /** The node that it is published to. */
  node: DemoNode | undefined;
  /** For calls from now on. */
  deadlineMs = defaultDeadlineMs;
  readonly #controller: CsiClient;
  readonly #nodeClients = new Map<string, CsiClient>();
  #context: Record<string, string> = {};
  #publishContext: Record<string, string> = {};

  constructor(name: string, controllerSocket: string) {
    this.name = name;
    this.#controller = new CsiClient(controllerSocket);
  }

  get stagingPath(): string {
    return join(this.#mustNode().kubeletDir, "plugins", this.name, "globalmount");
  }

  get targetPath(): string {
    return join(this.#mustNode().kubeletDir, "pods", this.name, "mount");
  }

  async create(sizeBytes: number): Promise<void> {
    const answer = await this.#insist(() =>
      this.#controller.call<{ volume: { volumeId: string; volumeContext: Record<string, string> } }>(
        "Controller",
        "createVolume",
        {
          name: this.name,
          volumeCapabilities: [volumeCapability],
          capacityRange: { requiredBytes: String(sizeBytes) },
          parameters: {},
        },
      ),
    );
    this.volumeId = answer.volume.volumeId;
    this.#context = answer.volume.volumeContext;
  }

  async controllerPublish(node: DemoNode): Promise<void> {
    this.node = node;
    const answer = await this.#insist(() =>
      this.#controller.call<{ publishContext: Record<string, string> }>("Controller", "controllerPublishVolume", {
        volumeId: this.volumeId,
        nodeId: node.id,
        volumeCapability,
        volumeContext: this.#context,
      }),
    );
    this.#publishContext = answer.publishContext;
  }

  async nodeStage(): Promise<void> {
    await mkdir(this.stagingPath, { recursive: true });
    await this.#callNode("nodeStageVolume");
  }

  async nodePublish(): Promise<void> {
    await mkdir(join(this.targetPath, ".."), { recursive: true });
    await this.#callNode("nodePublishVolume");
  }

  async nodeUnpublish(): Promise<void> {
    await this.#callNode("nodeUnpublishVolume");
  }

  async nodeUnstage(): Promise<void> {
    await this.#callNode("nodeUnstageVolume");
    await rm(this.stagingPath, { recursive: true, force: true });
  }

  async controllerUnpublish(): Promise<void> {
    const request = { volumeId: this.volumeId, nodeId: this.#mustNode().id };
    await this.#insist(() => this.#controller.call("Controller", "controllerUnpublishVolume", request));
    this.node = undefined;
  }

  async delete(): Promise<void> {
    const request = { volumeId: this.volumeId };
    await this.#insist(() => this.#controller.call("Controller", "deleteVolume", request));
    this.volumeId = "";
  }

  close(): void {
    for (const client of [this.#controller, ...this.#nodeClients.values()]) client.close();
  }

  #mustNode(): DemoNode {
    if (this.node === undefined) throw new Error("the volume is published to no node");
    return this.node;
  }

  async #callNode(method: string): Promise<void> {
    const { csiSocket } = this.#mustNode();
    const client = this.#nodeClients.get(csiSocket) ?? new CsiClient(csiSocket);
    this.#nodeClients.set(csiSocket, client);
    const request = {
      volumeId: this.volumeId,
      volumeCapability,
      volumeContext: this.#context,
      publishContext: this.#publishContext,
      stagingTargetPath: this.stagingPath,
      targetPath: this.targetPath,
    };
    await this.#insist(() => client.call("Node", method, request));
  }

  async #insist<T>(call: () => Promise<T>): Promise<T> {
    const deadlineMs = performance.now() + this.deadlineMs;
    for (;;) {
      try {
        return await call();
      } catch (error) {
        const answer = (error as { code?: number }).code;
        const again = answer === code.UNAVAILABLE || answer === code.ABORTED || answer === code.DEADLINE_EXCEEDED;
        if (!again || performance.now() > deadlineMs) throw error;
        await sleep(retryMs);
      }
    }
  }
}
