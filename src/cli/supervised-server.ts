/**
 * A process of a supervised server: `supervised-server.ts server|standby [flags]`. Started by supervise.ts alone, which
 * has set its environment.
 */
import { parseArguments } from "./config.ts";
import { endWithError } from "./command-error.ts";
import { runServer } from "./server.ts";
import { superviseBy } from "./supervision.ts";

process.umask(0o077);
const [role, ...args] = process.argv.slice(2);
try {
  const supervised = superviseBy(process, role === "standby" ? "standby" : "server");
  await runServer(parseArguments("server", args, process.env), supervised);
} catch (error) {
  endWithError(error);
}
