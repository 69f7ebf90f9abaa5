/**
 * The Identity service: who the plugin is, and whether it works. The controller announces the controller service;
 * the node does too, because a client that talks to either must learn the same of the plugin.
 * Probe must be cheap, since it is called every few seconds: it asks the readiness check it was given and nothing else.
 */
import type { Handlers } from "./grpc-server.ts";
import { asOperationError } from "../base/errors.ts";
import { CsiError } from "./status.ts";
import { status as code } from "@grpc/grpc-js";

export interface IdentityOptions {
  driverName: string;
  version: string;
  /** Resolves where the service can do its work; rejects with the reason where it cannot. Takes less than a second. */
  checkReady?: () => Promise<void>;
}

export function identityHandlers(options: IdentityOptions): Handlers {
  return {
    getPluginInfo: async () => ({ name: options.driverName, vendorVersion: options.version, manifest: {} }),
    getPluginCapabilities: async () => ({ capabilities: [{ service: { type: "CONTROLLER_SERVICE" } }] }),
    probe: async () => {
      try {
        await options.checkReady?.();
      } catch (error) {
        const reason = asOperationError(error, "unavailable", "the plugin is not ready");
        throw new CsiError(code.FAILED_PRECONDITION, reason.kind, reason.message);
      }
      return { ready: { value: true } };
    },
  };
}
