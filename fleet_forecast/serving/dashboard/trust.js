// Past forecasts against what was measured since.

import { intervalsOf } from "./fan.js";

const NEAR_MS = 40 * 60e3; // one forecast an hour is kept

// The past forecast whose origin is nearest to a moment, null if none is near.
export function nearestPast(forecasts, moment) {
  const distance = (forecast) => Math.abs(Date.parse(forecast.origin) - moment);
  const best = forecasts.reduce((found, one) => (!found || distance(one) < distance(found) ? one : found), null);
  return best && distance(best) <= NEAR_MS ? best : null;
}

// How many values measured since a past forecast are within its inner band: {inside, steps, share}; null without any.
export function coverageOf(past, history, metric) {
  const quantiles = past.metrics[metric], [interval] = quantiles ? intervalsOf(quantiles).slice(-1) : [];
  if (!interval || !history.metrics[metric]) return null;
  const measured = new Map(history.timestamps.map((stamp, index) => [Date.parse(stamp), history.metrics[metric][index]]));
  let inside = 0, steps = 0;
  past.timestamps.forEach((stamp, index) => {
    const value = measured.get(Date.parse(stamp));
    if (value === null || value === undefined) return;
    steps += 1;
    if (value >= quantiles[interval.low][index] && value <= quantiles[interval.high][index]) inside += 1;
  });
  return steps ? { inside, steps, share: interval.share } : null;
}
