/**
 * The two CSI processes, put together from what they are given: the controller plugin (identity, controller) and the
 * node plugin (identity, node), each on its own socket. Configuration, stores and signals are the command line's part.
 */
import type { Clock } from "../base/clock.ts";
import type { Log } from "../base/log.ts";
import type { DataPlane } from "../attachment/data-plane.ts";
import type { CatalogFor } from "./catalogs.ts";
import { ControllerService } from "./controller.ts";
import { type GrpcServer, serveCsi } from "./grpc-server.ts";
import { identityHandlers } from "./identity.ts";
import { NodeService } from "./node.ts";
import { mustNodeId } from "./requests.ts";

export interface PluginOptions {
  /** Absolute path of the unix socket. */
  socketPath: string;
  driverName: string;
  version: string;
  log: Log;
  clock: Clock;
}

export interface ControllerPluginOptions extends PluginOptions {
  catalogFor: CatalogFor;
  isKnownNode(nodeId: string): Promise<boolean>;
}

export interface NodePluginOptions extends PluginOptions {
  nodeId: string;
  maxVolumesPerNode: number;
  kubeletDir: string;
  dataPlane: DataPlane;
}

/** Serves until the answer is closed. */
export function startController(options: ControllerPluginOptions): Promise<GrpcServer> {
  const { socketPath, log, clock } = options;
  const services = { Identity: identityHandlers(options), Controller: new ControllerService(options).handlers() };
  return serveCsi({ socketPath, services, log, clock });
}

/** Serves until the answer is closed. The node's id must be registered (node-registry.ts) before volumes can come. */
export function startNode(options: NodePluginOptions): Promise<GrpcServer> {
  const { socketPath, log, clock } = options;
  mustNodeId(options.nodeId);
  const services = { Identity: identityHandlers(options), Node: new NodeService(options).handlers() };
  return serveCsi({ socketPath, services, log, clock });
}
