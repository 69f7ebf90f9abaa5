/** Every seed that ever showed a bug of the product, and what it was: `npm test` runs them all. */
export const failedSeeds: readonly { seed: number; why: string }[] = [];
