/** Speeds of a replay to choose from; 0 = as fast as possible. */
export const SPEEDS = [0.5, 1, 10, 60, 300, 1800, 3600, 0]
