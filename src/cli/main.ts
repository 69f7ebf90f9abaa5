#!/usr/bin/env node
/**
 * The command line: s3block <command> [flags]. It picks the command, reads its flags, and turns an error into one line
 * on standard error and exit code 1 (2 for a mistake in the command line itself). Commands are loaded when they are
 * called: the node service needs no S3 client in its memory.
 */
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { OperationError } from "../base/errors.ts";
import { endWithError } from "./command-error.ts";
import { helpText, parseArguments } from "./config.ts";
import type { ParsedArguments } from "./config.ts";
import { commandDescriptions } from "./flags.ts";
import type { CommandName, FlagValues } from "./flags.ts";
import { programVersion } from "./version.ts";

type Command = (parsed: ParsedArguments) => Promise<void>;

const commands: Readonly<Record<CommandName, () => Promise<Command>>> = {
  controller: async () => (await import("./controller.ts")).runController,
  server: async () => (await import("./server.ts")).runServer,
  node: async () => (await import("./node.ts")).runNode,
  volume: async () => (await import("./volume.ts")).runVolume,
  version: async () => async () => write(programVersion()),
};

const usageText = `Usage: s3block <command> [flags]

${Object.entries(commandDescriptions)
  .map(([name, { summary }]) => `  ${name.padEnd(12)}${summary}`)
  .join("\n")}

s3block <command> --help tells the flags of a command.`;

async function main(args: readonly string[]): Promise<void> {
  // Whatever the program makes is its owner's alone, also where a file is made by a library and for a moment only.
  process.umask(0o077);
  const [name = "", ...rest] = args;
  if (name === "" || name === "help" || name === "--help" || name === "-h") return write(usageText);
  if (!Object.hasOwn(commands, name)) {
    throw new OperationError("invalid", `unknown command ${JSON.stringify(name.slice(0, 64))}: see s3block --help`);
  }
  const command = name as CommandName;
  const parsed = parseArguments(command, rest, process.env);
  if (parsed.help) return write(helpText(command).trimEnd());
  if (command !== "volume" && parsed.positional.length > 0) {
    throw new OperationError("invalid", `unexpected argument ${JSON.stringify(parsed.positional[0].slice(0, 64))}`);
  }
  if (command === "server") await prepareServer(parsed.values, rest);
  const run = await commands[command]();
  await run(parsed);
}

/**
 * What must be set before anything else runs.
 * Compiled code is kept on disk, for this process and its threads: mounted file systems wait for a restarted server, and
 * without compiling it starts in about half the time (measured: 0.45 s of processor time instead of 0.85 s).
 * The pool's threads are shared by journals, caches and requests to the kernel; its default of four is so few that slow
 * calls of one volume could hold up all others.
 * With a standby this process is the supervisor from here on: it marks itself, which the processes it starts inherit.
 * Else it may replace itself here to be protected; it has loaded next to nothing by then.
 */
async function prepareServer(values: FlagValues, args: readonly string[]): Promise<void> {
  process.env.NODE_COMPILE_CACHE ??= join(values.stateDir, "compiled");
  process.env.UV_THREADPOOL_SIZE ??= "16";
  enableCompileCache(process.env.NODE_COMPILE_CACHE);
  if (values.standby) {
    const { superviseServer } = await import("./supervise.ts");
    await superviseServer(values, args);
  }
  const { markProcess } = await import("./process-protection.ts");
  await markProcess();
}

function write(text: string): void {
  process.stdout.write(`${text}\n`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  endWithError(error);
}
