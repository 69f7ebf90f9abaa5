/** Controller and node plugins on sockets of a temporary directory, over a memory store, for the tests of this folder. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DataPlane } from "../../src/attachment/data-plane.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { systemRandom } from "../../src/base/system-random.ts";
import type { CatalogFor } from "../../src/csi/catalogs.ts";
import type { GrpcServer } from "../../src/csi/grpc-server.ts";
import { isKnownNode, registerNode } from "../../src/csi/node-registry.ts";
import { startController, startNode } from "../../src/csi/plugin.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import { Catalog } from "../../src/volume/catalog.ts";
import type { LocationRecord } from "../../src/volume/format/control-records.ts";
import { CsiClient } from "./csi-client.ts";
import { RecordingLog } from "./recording-log.ts";

export const NODE_ID = "node-1";
export const OTHER_NODE_ID = "node-2";
const identity = { driverName: "s3block.csi", version: "0.0.0-test", clock: systemClock };

/** Stores by location, made when they are first asked for. */
export class MemoryCatalogs {
  readonly stores = new Map<string, MemoryStore>();
  /** Every set of access keys that was asked with. */
  readonly secretsSeen: Readonly<Record<string, string>>[] = [];
  readonly log: RecordingLog;
  /** Set to make opening a store fail. */
  failure: Error | undefined;

  constructor(log: RecordingLog) {
    this.log = log;
  }

  store(url = ""): MemoryStore {
    const store = this.stores.get(url) ?? new MemoryStore();
    this.stores.set(url, store);
    return store;
  }

  readonly catalogFor: CatalogFor = async (location: LocationRecord | undefined, secrets) => {
    if (this.failure !== undefined) throw this.failure;
    this.secretsSeen.push(secrets);
    const store = this.store(location?.url);
    const fenceForDeletion = async (): Promise<void> => {};
    return new Catalog({ store, clock: systemClock, random: systemRandom, log: this.log, fenceForDeletion });
  };
}

export interface TestController {
  client: CsiClient;
  catalogs: MemoryCatalogs;
  log: RecordingLog;
  socketPath: string;
  close(): Promise<void>;
}

export async function startTestController(): Promise<TestController> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-csi-"));
  const socketPath = join(directory, "controller.sock");
  const log = new RecordingLog();
  const catalogs = new MemoryCatalogs(log);
  const { catalogFor } = catalogs;
  for (const nodeId of [NODE_ID, OTHER_NODE_ID]) {
    await registerNode({ store: catalogs.store(), random: systemRandom }, nodeId);
  }
  const isKnown = (nodeId: string): Promise<boolean> => isKnownNode(catalogs.store(), nodeId);
  const server = await startController({ ...identity, socketPath, log, catalogFor, isKnownNode: isKnown });
  const client = new CsiClient(socketPath);
  const close = closing(directory, server, client);
  return { client, catalogs, log, socketPath, close };
}

export interface TestNode {
  client: CsiClient;
  log: RecordingLog;
  socketPath: string;
  /** Stands for the kubelet's directory. */
  kubeletDir: string;
  close(): Promise<void>;
}

export async function startTestNode(dataPlane: DataPlane): Promise<TestNode> {
  const directory = await mkdtemp(join(tmpdir(), "s3block-csi-"));
  const socketPath = join(directory, "node.sock");
  const kubeletDir = join(directory, "kubelet");
  await mkdir(kubeletDir);
  const log = new RecordingLog();
  const options = { ...identity, socketPath, log, nodeId: NODE_ID, maxVolumesPerNode: 64, kubeletDir, dataPlane };
  const server = await startNode(options);
  const client = new CsiClient(socketPath);
  return { client, log, socketPath, kubeletDir, close: closing(directory, server, client) };
}

function closing(directory: string, server: GrpcServer, client: CsiClient): () => Promise<void> {
  return async () => {
    client.close();
    await server.close();
    await rm(directory, { recursive: true });
  };
}
