/** The process's own store as its flags tell it: plain data, before anything of a store is loaded. */
import { OperationError } from "../base/errors.ts";
import type { StoreSettings } from "../store/open-store.ts";
import { parseEndpoint, parseStoreUrl } from "../store/store-url.ts";
import { flagName, flagVariable } from "./flags.ts";
import type { FlagValues } from "./flags.ts";

/** What the flags say about the process's own store. Plain data, so that it can go to a thread. Throws "invalid". */
export function storeSettings(values: FlagValues): StoreSettings {
  if (values.store === undefined || values.store === "") {
    throw new OperationError(
      "invalid",
      `give --${flagName("store")} or set ${flagVariable("store")}: s3://bucket/prefix, or file:///directory`,
    );
  }
  parseStoreUrl(values.store);
  for (const endpoint of values.s3Endpoint) parseEndpoint(endpoint);
  const { s3PathStyle, s3CaFile, s3CredentialsFile } = values;
  return {
    url: values.store,
    endpoints: values.s3Endpoint,
    region: values.s3Region,
    ...(s3PathStyle === undefined ? {} : { pathStyle: s3PathStyle }),
    ...(s3CaFile === undefined ? {} : { caFile: s3CaFile }),
    ...(s3CredentialsFile === undefined ? {} : { credentials: { kind: "file" as const, path: s3CredentialsFile } }),
  };
}
