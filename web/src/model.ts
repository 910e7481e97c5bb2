/** The service's nouns as the page uses them; times are RFC 3339 texts as sent, or milliseconds where said. */

export type Level = 'blue' | 'yellow' | 'orange' | 'red'
/** From least to worst. */
export const LEVELS: Level[] = ['blue', 'yellow', 'orange', 'red']
export const rank = (level: Level): number => LEVELS.indexOf(level)

export type Locale = 'zh' | 'en'
export type Theme = 'dark' | 'light'
export type Text = { zh: string; en: string }

export interface SensorRule {
  id: string
  title: Text
  detector: string
  side: 'above' | 'below' | 'either'
  /** Limits in the kind's canonical unit (detector "threshold"); empty for the others. */
  levels: Partial<Record<Level, number>>
  min: number | null
  max: number | null
  unit: string
}

export interface Sensor {
  id: string
  device: string
  property: string
  kind: string
  /** As the sensor reports; stored values are in the kind's unit. */
  unit: string
  tenant: string
  asset: string | null
  lon: number | null
  lat: number | null
  interval_s: number | null
  min: number | null
  max: number | null
  tags: string[]
  mode: string
  statistic: string | null
  /** Of one sensor asked for alone. */
  rules?: SensorRule[]
}

export interface Kind {
  name: string
  unit: string
  zh: string
  en: string
}

export type AlertState = 'active_unacknowledged' | 'active_acknowledged' | 'cleared_unacknowledged' | 'cleared'

export interface Alert {
  id: string
  rule: string
  rule_version: number
  sensor: string | null
  asset: string | null
  tenant: string
  domain: string
  level: Level
  peak_level: Level
  state: AlertState
  flags: string[]
  since: string
  raised_at: string
  cleared_at: string | null
  value: number | null
  peak_value: number | null
  threshold: number | null
  place: { lon: number | null; lat: number | null; name: string | null }
  instruction: Text
  message: Text
}

export interface AlertEvent {
  seq?: number
  id: string
  alert_id: string
  rule: string
  rule_version: number
  sensor: string | null
  asset: string | null
  tenant: string
  domain: string
  level: Level
  previous_level: Level | null
  state: AlertState
  transition: string
  value: number | null
  threshold: number | null
  observed_at: string
  at: string
  place: { lon: number | null; lat: number | null }
  message: Text
  retroactive?: boolean
  replaces?: string | null
  by?: string | null
  note?: string | null
  flags?: string[]
}

/** Alerts that belong together. */
export interface Incident {
  id: string
  state: 'open' | 'closed' | 'merged' | 'withdrawn'
  level: Level
  title: Text
  opened_at: string
  root: string | null
  reasons: (Text & { alerts: number })[]
  alert_count: number
  alert_ids: string[]
}

/** Whether alerts come faster than people can take them in; `rate`: in the last ten minutes. */
export interface Flood {
  active: boolean
  rate: number
}

export type Quality = 'good' | 'suspect' | 'bad'

/** A reading as kept in the page; `t` in milliseconds. */
export interface Reading {
  sensor: string
  t: number
  value: number | null
  quality: Quality
}

/** Readings of one span together; `t` is its start in milliseconds. */
export interface Bucket {
  t: number
  min: number
  max: number
  avg: number
  count: number
  last: number
}

export type ReplayState = 'preparing' | 'playing' | 'paused' | 'ended' | 'stopped' | 'failed'

export interface Replay {
  id: string
  state: ReplayState
  time: string
  from: string
  to: string
  /** Times faster than it was; 0 = as fast as possible. */
  speed: number
  sensors: number
  readings: number
  events: number
  digest: string | null
  rules: 'recorded' | 'given'
  received_before: string | null
  created_at: string
  error: string | null
}

export interface ReplayRequest {
  from: string
  to: string
  speed: number
  sensors?: string[]
  area?: [number, number, number, number]
  rules?: string
  received_before?: string
  paused?: boolean
}

export const isActive = (alert: { state: AlertState }): boolean => alert.state.startsWith('active')
export const isAcknowledgeable = (alert: { state: AlertState; flags: string[] }): boolean =>
  alert.state.endsWith('_unacknowledged') && !alert.flags.includes('latched')

/** Why nobody is to be disturbed by an alert, if anything holds it back. */
export const heldBy = (alert: { flags: string[] }): string | undefined => alert.flags.find((flag) => HELD.has(flag))

const HELD = new Set(['shelved', 'suppressed', 'out_of_service', 'chattering'])
