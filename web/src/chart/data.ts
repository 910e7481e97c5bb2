/** What the chart draws of a span: readings, or buckets where there would be too many. */
import { getBuckets, getReadings } from '../api'
import type { Bucket, Quality, Reading } from '../model'

export const MINUTE = 60_000
export const HOUR = 60 * MINUTE
export const DAY = 24 * HOUR
export const MOST = 5000 // raw readings in one picture
const FRESH_MS = 60_000 // late readings may still come: a kept answer is not shown longer than this
const KEPT = 16

export type Resolution = 'raw' | '1m' | '5m' | '1h' | '1d'
export const WIDTH: Record<Resolution, number> = { raw: 0, '1m': MINUTE, '5m': 5 * MINUTE, '1h': HOUR, '1d': DAY }

/** A reading (min = max = value) or a bucket; `value` is null where the line breaks. */
export interface Point {
  t: number
  value: number | null
  min: number
  max: number
  last: number
  count: number
  quality: Quality
}

export interface Series {
  resolution: Resolution
  from: number
  to: number
  points: Point[]
}

export function resolutionFor(span: number, interval_s: number | null): Resolution {
  if (span <= 6 * HOUR && (!interval_s || span / (interval_s * 1000) <= MOST)) return 'raw'
  if (span <= 2 * DAY) return '1m'
  if (span <= 14 * DAY) return '5m'
  return span <= 120 * DAY ? '1h' : '1d'
}

const ofReading = (r: Reading): Point => ({
  t: r.t,
  value: r.value,
  min: r.value ?? 0,
  max: r.value ?? 0,
  last: r.value ?? 0,
  count: 1,
  quality: r.quality,
})
const ofBucket = ({ avg, ...rest }: Bucket): Point => ({ ...rest, value: avg, quality: 'good' })

/** Answers of one sensor, kept for a while. */
export class Source {
  private kept = new Map<string, { at: number; series: Series }>()

  constructor(
    readonly sensor: string,
    readonly interval_s: number | null,
    readonly knownBefore: string | null = null,
  ) {}

  forget() {
    this.kept.clear()
  }

  async load(from: number, to: number, isKept = true): Promise<Series> {
    let resolution = resolutionFor(to - from, this.interval_s)
    const key = `${resolution} ${from} ${to}`
    const known = this.kept.get(key)
    if (known && isKept && Date.now() - known.at < FRESH_MS) return known.series
    let points: Point[] | null = null
    if (resolution === 'raw') {
      const { items, more } = await getReadings(this.sensor, from, to, MOST, this.knownBefore)
      if (more) resolution = '1m'
      else points = items.map(ofReading)
    }
    if (resolution !== 'raw') {
      // A bucket that begins before `from` is given with what lies within the span only, so ask for the whole of it.
      const start = Math.floor(from / WIDTH[resolution]) * WIDTH[resolution]
      points = (await getBuckets(this.sensor, start, to, resolution, this.knownBefore)).map(ofBucket)
    }
    const series = { resolution, from, to, points: points ?? [] }
    if (isKept) this.kept.set(key, { at: Date.now(), series })
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value as string)
    return series
  }
}

/** The series with readings that came since: `since` is the first moment the answer does not know. */
export function extended(series: Series, live: Iterable<Reading>, since: number, until: number): Point[] {
  const fresh = [...live].filter((r) => r.t >= since && r.t <= until).sort((a, b) => a.t - b.t)
  const width = WIDTH[series.resolution]
  if (!fresh.length) return series.points
  if (!width) {
    const first = fresh[0].t
    const old = series.points.filter((p) => p.t < first)
    const known = new Map(series.points.filter((p) => p.t >= first).map((p) => [p.t, p]))
    for (const reading of fresh) known.set(reading.t, ofReading(reading))
    return [...old, ...[...known.values()].sort((a, b) => a.t - b.t)]
  }
  const points = [...series.points]
  for (const { t, value, quality } of fresh) {
    if (value === null || quality === 'bad') continue
    const start = Math.floor(t / width) * width
    const last = points[points.length - 1]
    if (last?.t === start && last.value !== null) {
      const count = last.count + 1
      points[points.length - 1] = {
        ...last,
        value: last.value + (value - last.value) / count,
        min: Math.min(last.min, value),
        max: Math.max(last.max, value),
        last: value,
        count,
      }
    } else if (!last || last.t < start) {
      points.push({ t: start, value, min: value, max: value, last: value, count: 1, quality: 'good' })
    }
  }
  return points
}

/** How far apart two points may be and still be joined: five intervals of the sensor. */
export function widestGap(points: Point[], resolution: Resolution, interval_s: number | null): number {
  let interval = (interval_s ?? 0) * 1000
  if (!interval) {
    // Unknown: the median of what is seen.
    const steps = points.slice(1).map((p, i) => p.t - points[i].t).sort((a, b) => a - b)
    interval = steps[steps.length >> 1] ?? 0
  }
  return Math.max(5 * interval, 1.5 * WIDTH[resolution])
}
