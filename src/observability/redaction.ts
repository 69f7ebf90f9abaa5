/**
 * Keeps secrets out of what is logged: values under telling keys, and known secret texts wherever they stand
 * (a remote's error message may repeat an access key).
 * Invariants: the input is never changed; depth, length and count are bounded, so that a log line is too.
 * It must never throw: a log line that cannot be redacted is replaced, not written as it is.
 */
const secretKeyPattern = /secret|token|password|passphrase|credential|authorization|accesskey|access_key|privatekey/i;
const redacted = "[redacted]";
const maxDepth = 5;
const maxEntries = 100;
const maxTextLength = 4096;
/** Shorter texts are never treated as known secrets: they would blank ordinary words. */
const minSecretLength = 8;

export class Redactor {
  /** Longest first: one that begins with another must not leave its end behind. */
  #secrets: string[] = [];

  /** From now on `text` is blanked wherever it appears. Texts of fewer than eight characters are not remembered. */
  addSecret(text: string): void {
    if (text.length < minSecretLength || this.#secrets.includes(text)) return;
    this.#secrets = [...this.#secrets, text].toSorted((a, b) => b.length - a.length);
  }

  /** `text` without the known secrets, and cut to 4096 characters. */
  redactText(text: string): string {
    let result = text;
    for (const secret of this.#secrets) {
      if (result.includes(secret)) result = result.replaceAll(secret, redacted);
    }
    return result.length > maxTextLength ? `${result.slice(0, maxTextLength)}…` : result;
  }

  /** A copy of `fields` that is safe to write as JSON. */
  redactFields(fields: Readonly<Record<string, unknown>>): Record<string, unknown> {
    return this.#redactRecord(fields, 0);
  }

  #redactRecord(record: object, depth: number): Record<string, unknown> {
    const result: Record<string, unknown> = {};
    let count = 0;
    for (const [key, value] of Object.entries(record)) {
      count += 1;
      if (count > maxEntries) break;
      result[key] = secretKeyPattern.test(key) ? redacted : this.#redactValue(value, depth + 1);
    }
    return result;
  }

  #redactValue(value: unknown, depth: number): unknown {
    if (typeof value === "string") return this.redactText(value);
    if (typeof value === "bigint") return value.toString();
    if (typeof value === "function" || typeof value === "symbol") return `[${typeof value}]`;
    if (value === null || typeof value !== "object") return value;
    if (value instanceof Error) return this.redactText(errorText(value));
    if (depth > maxDepth) return "[deep]";
    if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
    if (Array.isArray(value)) return value.slice(0, maxEntries).map((entry) => this.#redactValue(entry, depth + 1));
    if (value instanceof Map || value instanceof Set) return `[${value.size} entries]`;
    return this.#redactRecord(value, depth);
  }
}

/** Message of an error and of at most four causes, without stacks. */
function errorText(error: Error): string {
  const parts: string[] = [];
  let current: unknown = error;
  for (let depth = 0; depth < 5 && current instanceof Error; depth += 1) {
    if (!parts.some((part) => part.includes((current as Error).message))) parts.push(current.message);
    current = current.cause;
  }
  return parts.join(": ");
}
