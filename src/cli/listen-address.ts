/** The values of --listen: unix:/path or tcp://host:port. */
import { OperationError } from "../base/errors.ts";
import type { ListenAddress } from "../nbd/server.ts";
import { parseAddress } from "../observability/http.ts";

/** Throws "invalid", also for tcp without `insecure`. */
export function listenAddresses(texts: readonly string[], insecure: boolean): ListenAddress[] {
  return texts.map((text) => {
    if (text.startsWith("unix:/")) return { path: text.slice("unix:".length) };
    if (!text.startsWith("tcp://")) {
      throw new OperationError("invalid", "--listen takes unix:/path or tcp://host:port", {
        context: { listen: JSON.stringify(text.slice(0, 128)) },
      });
    }
    if (!insecure) {
      throw new OperationError(
        "invalid",
        "nbd over tcp is not encrypted and lets anybody who reaches the port read and write every volume: " +
          "listen on unix:/path, or add --insecure where the network is trusted",
        { context: { listen: text } },
      );
    }
    return { ...parseAddress(text.slice("tcp://".length)), insecure };
  });
}
