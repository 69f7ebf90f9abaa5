/**
 * The configuration of every command: flags.ts says what there is, this file reads it from arguments and environment.
 * A flag beats its environment variable, which beats the default; an empty variable counts as unset.
 * Everything is validated here, once: unknown flags, repeated ones and values out of range are refused with a message
 * that names the flag and what it takes. Values are never printed for flags that may hold secrets (there are none:
 * secrets come by file or AWS_* variables).
 */
import { OperationError } from "../base/errors.ts";
import { commandDescriptions, flagName, flags, flagVariable } from "./flags.ts";
import type { CommandName, Flag, FlagKey, FlagValues } from "./flags.ts";

export interface ParsedArguments {
  values: FlagValues;
  /** Arguments that are no flags, in order. */
  positional: string[];
  help: boolean;
}

const keysByName = new Map(Object.keys(flags).map((key) => [flagName(key as FlagKey), key as FlagKey]));

/** Reads `args` (what stands after the command's name) and `environment` for `command`. Throws "invalid". */
export function parseArguments(
  command: CommandName,
  args: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): ParsedArguments {
  const given = new Map<FlagKey, string[]>();
  const positional: string[] = [];
  let help = false;
  for (let index = 0; index < args.length; index += 1) {
    const argument = args[index];
    if (argument === "--help" || argument === "-h") {
      help = true;
    } else if (argument === "--") {
      positional.push(...args.slice(index + 1));
      break;
    } else if (!argument.startsWith("-") || argument === "-") {
      positional.push(argument);
    } else {
      const { key, inline } = mustFlag(command, argument);
      const takesNext = inline === undefined && flags[key].type !== "boolean";
      if (takesNext && index + 1 >= args.length) throw invalid(key, "needs a value");
      const value = takesNext ? args[(index += 1)] : (inline ?? "true");
      given.set(key, [...(given.get(key) ?? []), value]);
    }
  }
  const values: Record<string, unknown> = {};
  for (const key of flagKeysOf(command)) values[key] = flagValue(key, given.get(key), environment[flagVariable(key)]);
  return { values: values as FlagValues, positional, help };
}

/** The flags that `command` knows, in the order of the table. */
export function flagKeysOf(command: CommandName): FlagKey[] {
  return (Object.keys(flags) as FlagKey[]).filter((key) => definition(key).commands.includes(command));
}

/** The text of --help. */
export function helpText(command: CommandName): string {
  const { summary, usage } = commandDescriptions[command];
  const lines = [`s3block ${command}: ${summary}`, "", `Usage: s3block ${command} ${usage}`, ""];
  for (const key of flagKeysOf(command)) {
    const flag = definition(key);
    lines.push(`  --${flagName(key)}${flag.type === "boolean" ? "" : ` <${valueName(flag)}>`}`);
    lines.push(`      ${flag.description}`);
    const fallback = flag.default === undefined || flag.default === "" ? "" : `default ${String(flag.default)}; `;
    lines.push(`      (${fallback}environment ${flagVariable(key)})`);
  }
  return `${lines.join("\n")}\n`;
}

function definition(key: FlagKey): Flag {
  return flags[key];
}

function valueName(flag: Flag): string {
  if (flag.choices !== undefined) return flag.choices.join("|");
  return flag.type === "list" ? "value,value…" : flag.type;
}

function mustFlag(command: CommandName, argument: string): { key: FlagKey; inline: string | undefined } {
  const equals = argument.indexOf("=");
  const name = equals === -1 ? argument : argument.slice(0, equals);
  const key = name.startsWith("--") ? keysByName.get(name.slice(2)) : undefined;
  if (key === undefined || !definition(key).commands.includes(command)) {
    throw new OperationError("invalid", `unknown flag ${name.slice(0, 64)}: see s3block ${command} --help`);
  }
  return { key, inline: equals === -1 ? undefined : argument.slice(equals + 1) };
}

function flagValue(key: FlagKey, given: string[] | undefined, variable: string | undefined): unknown {
  const flag = definition(key);
  if (flag.type === "list") {
    const texts = given ?? (variable === undefined ? [] : [variable]);
    for (const text of texts) mustBeOneLine(key, text);
    return texts.flatMap((text) => text.split(",").map((part) => part.trim())).filter((part) => part !== "");
  }
  if (given !== undefined && given.length > 1) throw invalid(key, "is given more than once");
  const text = given?.[0] ?? (variable === "" ? undefined : variable);
  if (text === undefined) return typeof flag.default === "string" ? parseValue(key, flag, flag.default) : flag.default;
  return parseValue(key, flag, text);
}

function parseValue(key: FlagKey, flag: Flag, text: string): unknown {
  mustBeOneLine(key, text);
  switch (flag.type) {
    case "boolean":
      if (text === "true" || text === "false") return text === "true";
      throw invalid(key, "takes true or false");
    case "number":
      return bounded(key, flag, /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN);
    case "size":
      return bounded(key, flag, parseSize(text));
    default:
      if (flag.choices !== undefined && !flag.choices.includes(text)) {
        throw invalid(key, `takes one of ${flag.choices.join(", ")}`);
      }
      return text;
  }
}

function mustBeOneLine(key: FlagKey, text: string): void {
  if (/[\0\r\n]/.test(text)) throw invalid(key, "must be one line");
}

function bounded(key: FlagKey, flag: Flag, value: number): number {
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = flag;
  if (Number.isSafeInteger(value) && value >= min && value <= max) return value;
  const unit = flag.type === "size" ? "a size like 512MiB" : "a whole number";
  throw invalid(key, `takes ${unit} from ${min} to ${max}`);
}

const sizeUnits: Readonly<Record<string, number>> = { "": 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

/** Bytes of "4096", "512MiB", "10Gi" or "1TiB"; NaN for anything else. */
export function parseSize(text: string): number {
  const match = /^(\d{1,15})(?:([KMGT]i)B?)?$/.exec(text);
  if (match === null) return Number.NaN;
  const value = Number(match[1]) * sizeUnits[match[2] === undefined ? "" : `${match[2]}B`];
  return Number.isSafeInteger(value) ? value : Number.NaN;
}

function invalid(key: FlagKey, what: string): OperationError {
  return new OperationError("invalid", `--${flagName(key)} (or ${flagVariable(key)}) ${what}`);
}
