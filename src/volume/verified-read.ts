/**
 * Reads of whole records that are decoded at once. What does not decode is read again by the store's own patience
 * (`verify` in RequestOptions), so that one bad answer is not taken for a bad object; what is bad every time is "corrupt".
 */
import type { ObjectStore, RequestOptions } from "../store/object-store.ts";

/** The decoded object, or undefined where no object has this key. Rejects with what `decode` throws. */
export async function getDecoded<T>(
  store: ObjectStore,
  key: string,
  decode: (bytes: Buffer) => T,
  options: RequestOptions = {},
): Promise<T | undefined> {
  let decoded: { value: T } | undefined;
  const verify = (bytes: Buffer): void => {
    decoded = { value: decode(bytes) };
  };
  const bytes = await store.get(key, { ...options, verify });
  if (bytes === undefined) return undefined;
  return decoded === undefined ? decode(bytes) : decoded.value;
}
