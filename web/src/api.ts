/** The service's HTTP interface, and the token for it and the WebSocket. */
import { ref } from 'vue'
import type {
  Action,
  Alert,
  AlertEvent,
  Bucket,
  Hold,
  Incident,
  Kind,
  Quality,
  Reading,
  Replay,
  ReplayRequest,
  Sensor,
  Text,
  WholeIncident,
} from './model'

const PAGE = 1000
const HOLDS_MOST = 2000
const TOKEN = 'cimtwin.token'

/** Set when the service has refused for want of a (right) token. */
export const isTokenWanted = ref(false)

export const token = (): string | null => sessionStorage.getItem(TOKEN)

export function setToken(value: string): void {
  sessionStorage.setItem(TOKEN, value)
  isTokenWanted.value = false
}

/** `status` 0: the service was not reached. `title`, `detail` and `problems` (where several things are wrong, each) are
 * "English / 中文" as the service writes them. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly problems: { field: string; text: string }[] = [],
  ) {
    super(detail || title)
  }
}

type Query = Record<string, string | number | null | undefined>

/** An address of the service, relative to where the page came from. */
export function address(path: string, query: Query = {}): URL {
  const url = new URL(path, document.baseURI)
  url.hash = ''
  for (const [name, value] of Object.entries(query)) if (value != null) url.searchParams.set(name, String(value))
  return url
}

let ahead = 0

/** The time by the service's clock, to the second: what people give an end is ended by that one. */
export const serviceTime = (): number => Date.now() + ahead

async function call<T>(path: string, query: Query = {}, init: RequestInit = {}): Promise<T> {
  const headers = new Headers(init.headers)
  headers.set('Accept', 'application/json')
  const given = token()
  if (given) headers.set('Authorization', `Bearer ${given}`)
  let response: Response
  try {
    response = await fetch(address(`api/v1/${path}`, query), { ...init, headers })
  } catch (error) {
    throw new ApiError(0, 'not reached / 无法连接', error instanceof Error ? error.message : String(error))
  }
  const told = Date.parse(response.headers.get('Date') ?? '')
  if (!Number.isNaN(told)) ahead = told - Date.now()
  if (response.ok) return (await response.json()) as T
  if (response.status === 401) isTokenWanted.value = true
  const problem = await response.json().catch(() => ({}))
  throw new ApiError(response.status, problem.title ?? response.statusText, problem.detail ?? '', problem.problems)
}

function post<T>(path: string, body: unknown): Promise<T> {
  return call<T>(path, {}, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key() },
    body: JSON.stringify(body),
  })
}

/** `crypto.randomUUID` is only there on https and loopback. */
const key = (): string => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join('-')

interface Page<T> {
  items: T[]
  next: string | null
}

/** Items of all pages, but at most `most`. */
async function list<T>(path: string, query: Query = {}, most = Infinity): Promise<{ items: T[]; more: boolean }> {
  const items: T[] = []
  let after: string | null = null
  do {
    const page: Page<T> = await call<Page<T>>(path, { ...query, limit: Math.min(PAGE, most - items.length), after })
    items.push(...page.items)
    after = page.next
  } while (after !== null && items.length < most)
  return { items, more: after !== null }
}

const time = (ms: number): string => new Date(ms).toISOString()
const sensorPath = (id: string): string => `sensors/${id.split('/').map(encodeURIComponent).join('/')}`

export const getSensors = async (): Promise<Sensor[]> => (await list<Sensor>('sensors')).items

/** One sensor with the rules that judge it. */
export const getSensor = (id: string): Promise<Sensor> => call<Sensor>(sensorPath(id))

export async function getKinds(): Promise<Map<string, Kind>> {
  const { items } = await call<Page<Kind>>('kinds')
  return new Map(items.map((kind) => [kind.name, kind]))
}

export interface Rule {
  id: string
  detector: string
  title?: Partial<Text>
  instruction?: Partial<Text>
}

export const getRules = async (): Promise<Rule[]> => (await call<Page<Rule>>('rules')).items

/** Readings of `[from, to)` as they were sent, ascending; `more`: there are more than `limit`. */
export async function getReadings(
  sensor: string,
  from: number,
  to: number,
  limit = 5000,
  knownBefore: string | null = null,
): Promise<{ items: Reading[]; more: boolean }> {
  type Raw = { observed_at: string; value: number | null; quality: Quality }
  const { items, more } = await list<Raw>(
    'readings',
    { sensor, from: time(from), to: time(to), received_before: knownBefore },
    limit,
  )
  return { items: items.map((r) => ({ sensor, t: Date.parse(r.observed_at), value: r.value, quality: r.quality })), more }
}

export async function getBuckets(
  sensor: string,
  from: number,
  to: number,
  bucket: '1m' | '5m' | '1h' | '1d',
  knownBefore: string | null = null,
): Promise<Bucket[]> {
  type Raw = Omit<Bucket, 't'> & { bucket: string }
  const { items } = await list<Raw>('readings', {
    sensor,
    from: time(from),
    to: time(to),
    bucket,
    received_before: knownBefore,
  })
  return items.map(({ bucket: start, ...rest }) => ({ t: Date.parse(start), ...rest }))
}

/** Alerts of a sensor open at any time within `[from, to)`. */
export const getAlertsOf = async (sensor: string, from: number, to: number): Promise<Alert[]> =>
  (await list<Alert>('alerts', { sensor, from: time(from), to: time(to) })).items

export const getAlert = (id: string): Promise<Alert & { events: AlertEvent[] }> =>
  call<Alert & { events: AlertEvent[] }>(`alerts/${encodeURIComponent(id)}`)

/** `until` is for shelving, `to` for assigning. */
export const act = (
  alertId: string,
  action: Action,
  by: string,
  note: string,
  more: { until?: string; to?: string } = {},
): Promise<Alert> =>
  post<Alert>(`alerts/${encodeURIComponent(alertId)}/actions`, { action, by: by || null, note: note || null, ...more })

export const getIncident = (id: string): Promise<WholeIncident> =>
  call<WholeIncident>(`incidents/${encodeURIComponent(id)}`)

/** `incidents` to merge into it, `alerts` to split off. */
export const actOnIncident = (
  id: string,
  action: 'confirm' | 'note' | 'close' | 'merge' | 'split',
  by: string,
  note: string,
  more: { incidents?: string[]; alerts?: string[] } = {},
): Promise<Incident & { split_off?: string }> =>
  post(`incidents/${encodeURIComponent(id)}/actions`, { action, by: by || null, note: note || null, ...more })

/** Those in force and to come, newest first. */
export const getHolds = async (): Promise<Hold[]> => (await list<Hold>('holds', { state: 'standing' }, HOLDS_MOST)).items

export interface NewHold {
  kind: 'silence'
  matchers: Record<string, string[]>
  until: string
  by: string | null
  note: string | null
}

export const beginHold = (hold: NewHold): Promise<Hold> => post<Hold>('holds', hold)

export const endHold = (id: string, by: string, note: string): Promise<Hold> =>
  call<Hold>(`holds/${encodeURIComponent(id)}`, { by: by || null, note: note || null }, { method: 'DELETE' })

export const createReplay = (request: ReplayRequest): Promise<Replay> => post<Replay>('replays', request)

export const getReplays = async (): Promise<Replay[]> => (await call<Page<Replay>>('replays')).items

export const getReplay = (id: string): Promise<Replay> => call<Replay>(`replays/${encodeURIComponent(id)}`)

export type Control =
  | { action: 'play' | 'pause' | 'stop' }
  | { action: 'seek'; time: string }
  | { action: 'speed'; speed: number }

export const controlReplay = (id: string, control: Control): Promise<Replay> =>
  post<Replay>(`replays/${encodeURIComponent(id)}/control`, control)
