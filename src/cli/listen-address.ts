/**
 * The values of --listen: unix:/path or tcp://host:port. What goes over TCP goes through TLS with certificates on both
 * sides; only the word --insecure takes that away, and it cannot stand beside the files of TLS.
 */
import { OperationError } from "../base/errors.ts";
import type { ListenAddress } from "../nbd/server.ts";
import type { TlsFiles } from "../nbd/tls.ts";
import { parseAddress } from "../observability/http.ts";
import { flagName } from "./flags.ts";
import type { FlagKey, FlagValues } from "./flags.ts";

export type ListenFlags = Pick<FlagValues, "listen" | "insecure" | (typeof tlsFlags)[number]>;

const tlsFlags = ["tlsCertFile", "tlsKeyFile", "tlsCaFile"] as const satisfies readonly FlagKey[];

/** Throws "invalid", also for tcp with neither TLS nor --insecure. */
export function listenAddresses(values: ListenFlags): ListenAddress[] {
  const tls = tlsFiles(values);
  return values.listen.map((text) => {
    if (text.startsWith("unix:/")) return { path: text.slice("unix:".length) };
    if (!text.startsWith("tcp://")) {
      throw new OperationError("invalid", "--listen takes unix:/path or tcp://host:port", {
        context: { listen: JSON.stringify(text.slice(0, 128)) },
      });
    }
    if (tls === undefined && !values.insecure) {
      throw new OperationError(
        "invalid",
        "nbd over tcp without tls lets anybody who reaches the port read and write every volume: " +
          `give ${names(tlsFlags)}, listen on unix:/path, or add --insecure where the network is trusted`,
        { context: { listen: text } },
      );
    }
    const address = parseAddress(text.slice("tcp://".length));
    return tls === undefined ? { ...address, insecure: true } : { ...address, tls };
  });
}

function tlsFiles(values: ListenFlags): TlsFiles | undefined {
  const missing = tlsFlags.filter((key) => values[key] === undefined);
  if (missing.length === tlsFlags.length) return undefined;
  const { tlsCertFile: certFile, tlsKeyFile: keyFile, tlsCaFile: caFile } = values;
  if (certFile === undefined || keyFile === undefined || caFile === undefined) {
    throw new OperationError("invalid", `tls needs three files: give ${names(missing)} too`);
  }
  if (values.insecure) throw new OperationError("invalid", `--insecure and ${names(tlsFlags)} exclude each other`);
  return { certFile, keyFile, caFile };
}

function names(keys: readonly FlagKey[]): string {
  return keys.map((key) => `--${flagName(key)}`).join(", ");
}
