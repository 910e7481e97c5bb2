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

export type Verdict = 'confirmed' | 'false_alarm'

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
  /** What suppresses it: `silence:ID` and the like, or `alert:ID`. */
  suppressed_by: string[]
  shelved_until: string | null
  assignee: string | null
  verdict: Verdict | null
  since: string
  raised_at: string
  cleared_at: string | null
  value: number | null
  peak_value: number | null
  threshold: number | null
  place: { lon: number | null; lat: number | null; name: string | null }
  instruction: Text
  message: Text
  /** Of one that is asked for; null until it is in one. */
  incident?: string | null
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
  /** What the event changed beside state, level and flags. */
  detail?: Partial<Pick<Alert, 'suppressed_by' | 'shelved_until' | 'assignee' | 'verdict'>> | null
}

/** Alerts that belong together. */
export interface Incident {
  id: string
  state: 'open' | 'closed' | 'merged' | 'withdrawn'
  level: Level
  title: Text
  opened_at: string
  closed_at: string | null
  root: string | null
  probable_cause: Cause | null
  other_causes: Cause[]
  reasons: (Text & { alerts: number })[]
  alert_count: number
  active_count: number
  unacknowledged_count: number
  held_count: number
  alert_ids: string[]
  asset_count: number
  place: { lon: number | null; lat: number | null; name: string | null }
  confirmed: { by: string | null; at: string } | null
  ended_by_hand: boolean
  merged_into: string | null
}

/** An alert that explains others of its incident, and how many. */
export interface Cause {
  alert: string
  what: Text
  since: string
  explains: number
  place: { lon: number | null; lat: number | null; name: string }
}

/** One that is asked for. `how` an alert came into it: `first`, `same`, `cause`, `near`, `along`, `hand`. */
export interface WholeIncident extends Incident {
  alerts: (Alert & { why: { how: string; by: string | null } })[]
  history: { at: string; what: string; alert: string | null; by: string | null; note: string | null }[]
}

/** What holds alerts back: a silence and its like, a shelf, or a point out of service. */
export interface Hold {
  id: string
  kind: 'silence' | 'maintenance' | 'mute' | 'suppress' | 'shelve' | 'out_of_service'
  state: 'pending' | 'active' | 'waiting' | 'ended'
  matchers: Record<string, string[]>
  times: { months?: number[]; weekdays?: number[]; hours?: string[]; time_zone?: string } | null
  from: string
  until: string | null
  by: string | null
  note: string | null
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

export type Action =
  | 'acknowledge'
  | 'assign'
  | 'shelve'
  | 'unshelve'
  | 'out_of_service'
  | 'return_to_service'
  | 'confirm'
  | 'false_alarm'
  | 'note'
  | 'close'

/** Whether the service would do it to an alert as it stands; it has the last word. */
export function isAllowed(action: Action, alert: Alert): boolean {
  const has = (flag: string) => alert.flags.includes(flag)
  const isOpen = alert.state !== 'cleared'
  switch (action) {
    case 'acknowledge':
      return isAcknowledgeable(alert)
    case 'assign':
      return isOpen
    case 'shelve':
      return isOpen && !has('shelved')
    case 'unshelve':
      return isOpen && has('shelved')
    case 'out_of_service':
      return isOpen && !has('out_of_service')
    case 'return_to_service':
      return isOpen && has('out_of_service')
    case 'confirm':
      return alert.verdict !== 'confirmed' && !has('withdrawn')
    case 'false_alarm':
      return alert.verdict !== 'false_alarm' && !has('withdrawn')
    case 'note':
      return true
    case 'close':
      return alert.state === 'cleared_unacknowledged'
  }
}

/** Why nobody is to be disturbed by an alert, if anything holds it back. */
export const heldBy = (alert: { flags: string[] }): string | undefined => alert.flags.find((flag) => HELD.has(flag))

/** All of what holds it back. */
export const allHeldBy = (alert: { flags: string[] }): string[] => alert.flags.filter((flag) => HELD.has(flag))

const HELD = new Set(['shelved', 'suppressed', 'out_of_service', 'chattering'])
