/**
 * What an object key may look like. One rule for every store keeps them alike: what one accepts, all accept. Keys hold
 * ASCII alone, so that comparing strings is comparing bytes, need no escaping in a URL, and cannot leave the root of
 * a directory store ("." and ".." are no parts, and no part is empty).
 */
import { assert } from "../base/assert.ts";

/** Longest key in bytes; S3 takes 1024 with the prefix of the store before it. */
export const MAX_KEY_BYTES = 768;

const KEY_PART = "(?!\\.{1,2}(?:/|$))[A-Za-z0-9._=-]{1,200}";
const KEY = new RegExp(`^${KEY_PART}(?:/${KEY_PART})*$`);
const KEY_PREFIX = new RegExp(`^(?:${KEY_PART}(?:/${KEY_PART})*/?)?$`);

/** Keys are built by code, never by users: a bad one is a bug. */
export function assertKey(key: string): void {
  if (key.length > MAX_KEY_BYTES || !KEY.test(key)) assert(false, `not an object key: ${JSON.stringify(key)}`);
}

/** A prefix is the beginning of a key, cut anywhere; the empty one means all keys. */
export function assertKeyPrefix(prefix: string): void {
  const isPrefix = prefix.length <= MAX_KEY_BYTES && KEY_PREFIX.test(prefix);
  if (!isPrefix) assert(false, `not a key prefix: ${JSON.stringify(prefix)}`);
}

/** Order of keys: plain byte order, which for ASCII is the order of strings. For Array.sort. */
export function compareKeys(left: string, right: string): number {
  return left < right ? -1 : left > right ? 1 : 0;
}

/** True where `text` is acceptable as the prefix of a whole store inside a bucket: empty, or a key. */
export function isKeyOrEmpty(text: string): boolean {
  return text === "" || (text.length <= 200 && KEY.test(text));
}
