/** A CSI client for tests: calls over a unix socket, as a sidecar or the kubelet makes them. */
import { type Client, credentials, makeGenericClientConstructor, type ServiceError } from "@grpc/grpc-js";
import { loadCsiServices, type ServiceName } from "../../src/csi/grpc-server.ts";

type Unary = (request: object, callback: (error: ServiceError | null, response: object) => void) => void;

export class CsiClient {
  readonly #clients = new Map<ServiceName, Client>();

  constructor(socketPath: string) {
    for (const [name, definition] of Object.entries(loadCsiServices())) {
      const Service = makeGenericClientConstructor(definition, name);
      this.#clients.set(name as ServiceName, new Service(`unix:${socketPath}`, credentials.createInsecure()));
    }
  }

  /** The response; rejects with a ServiceError (code, details). */
  call<T = Record<string, unknown>>(service: ServiceName, method: string, request: object = {}): Promise<T> {
    const client = this.#clients.get(service) as unknown as Record<string, Unary>;
    return new Promise((resolve, reject) => {
      client[method](request, (error, response) => {
        if (error === null) resolve(response as T);
        else reject(error);
      });
    });
  }

  /** The code of the answer: 0 where the call succeeds. */
  async codeOf(service: ServiceName, method: string, request: object = {}): Promise<number> {
    try {
      await this.call(service, method, request);
      return 0;
    } catch (error) {
      return (error as ServiceError).code;
    }
  }

  close(): void {
    for (const client of this.#clients.values()) client.close();
  }
}

export const mountCapability = { mount: { fsType: "ext4" }, accessMode: { mode: "SINGLE_NODE_WRITER" } };
export const blockCapability = { block: {}, accessMode: { mode: "SINGLE_NODE_WRITER" } };
