/** What the page shows: its mode, what is chosen, and what the service told, for whichever component needs it. */
import { computed, reactive, ref, shallowRef, watch } from 'vue'
import { ApiError, getHolds, getIncident, getKinds, getReplay, getRules, getSensors, isTokenWanted, type Rule } from './api'
import { local } from './format'
import { half, i18n } from './i18n'
import { Feed, type ShownAlert } from './live'
import {
  isActive,
  LEVELS,
  rank,
  type Hold,
  type Incident,
  type Kind,
  type Level,
  type Locale,
  type Reading,
  type Replay,
  type Sensor,
  type Theme,
  type WholeIncident,
} from './model'

const THEME = 'cimtwin.theme'
const EVERYWHERE: [number, number, number, number] = [-180, -90, 180, 90]
const NEW_MS = 10_000
const SILENT_INTERVALS = 3
const RELOAD_MS = 30_000
const HOLDS_MS = 30_000
const INCIDENT_MS = 1000 // one that grows is not asked for more often
const STATE = /\b(?:active_acknowledged|active_unacknowledged|cleared_unacknowledged|cleared$)/g // as the service names them
const DONE = /\b(?:shelved|out_of_service|confirmed|false_alarm)\b/g

export const ui = reactive({
  theme: (localStorage.getItem(THEME) === 'light' ? 'light' : 'dark') as Theme,
  mode: 'live' as 'live' | 'replay',
  replayId: null as string | null,
  sensor: null as string | null,
  alert: null as string | null,
  incident: null as string | null,
  isHoldsOpen: false,
})

export const locale = computed<Locale>(() => i18n.global.locale.value)

export function setTheme(theme: Theme): void {
  ui.theme = theme
  localStorage.setItem(THEME, theme)
}

// What does not change by itself

export const sensors = shallowRef<Sensor[]>([])
export const kinds = shallowRef(new Map<string, Kind>())
export const rules = shallowRef(new Map<string, Rule>())
export const sensorOf = computed(() => new Map(sensors.value.map((sensor) => [sensor.id, sensor])))
/** What could not be read, in the page's language; null = all is well. */
export const loadError = ref<string | null>(null)
let loadedAt = 0
const RETRY_MS = 2000

export async function load(): Promise<void> {
  loadedAt = Date.now()
  try {
    const [allSensors, allKinds, allRules] = await Promise.all([getSensors(), getKinds(), getRules()])
    sensors.value = allSensors
    kinds.value = allKinds
    rules.value = new Map(allRules.map((rule) => [rule.id, rule]))
    loadError.value = null
  } catch (error) {
    loadError.value = said(error)
  }
}

/** An error of the service in the page's language. */
export function said(error: unknown): string {
  if (!(error instanceof ApiError)) return String(error)
  const { t } = i18n.global
  const several = error.problems.map(({ field, text }) => `${field} ${half(text, locale.value)}`.trim())
  const text = several.join('; ') || half((error.status !== 0 && error.detail) || error.title, locale.value)
  return text.replace(STATE, (state) => t(`state.${state}`)).replace(DONE, (word) => t(`alert.transition.${word}`))
}

// Feeds

export const live = shallowRef<Feed | null>(null)
const replayFeed = shallowRef<Feed | null>(null)
export const replay = shallowRef<Replay | null>(null)
/** Why a replay is not shown. */
export const replayNotice = ref('')
/** For a chosen sensor without a place, which no box contains. */
const unplaced = shallowRef<Feed | null>(null)

/** What the page shows now: the live feed, or the replay's. Null while a replay is being chosen. */
export const feed = computed(() => (ui.mode === 'live' ? live.value : replayFeed.value))
const panelFeed = computed(() => unplaced.value ?? feed.value)

export const tick = ref(Date.now())
/** Not null where live data are of the past, as in the demo: the time that they have come to. */
export const pastTime = computed(() => live.value?.pastTime(tick.value) ?? null)
/** What the live data have come to. */
export const liveTime = computed(() => pastTime.value ?? tick.value)
/** The time that ages count to: the clock's, the data's, or the replay's. */
export const now = computed(() =>
  ui.mode === 'live' ? liveTime.value : (feed.value?.clock.value?.time ?? Date.parse(replay.value?.time ?? '')),
)
/** How long an alert has stood; one of silence is timed by the service's clock, also where data are of the past. */
export const ageOf = (alert: ShownAlert): number =>
  (alert.raised > now.value && ui.mode === 'live' ? tick.value : now.value) - alert.raised

// Alerts

/** Active before cleared, worst first, newest first: as the service lists them. */
const before = (a: ShownAlert, b: ShownAlert): number =>
  Number(isActive(b)) - Number(isActive(a)) ||
  rank(b.level) - rank(a.level) ||
  b.raised - a.raised ||
  (a.id < b.id ? -1 : 1)

/** With those that have just ended where they were: they do not jump before they go. */
const place = (alert: ShownAlert): ShownAlert =>
  alert.state === 'cleared' ? { ...alert, state: 'cleared_unacknowledged' } : alert

function sorted(source: Feed | null): ShownAlert[] {
  if (source === null) return []
  void source.alertsVersion.value
  return [...source.alerts.values()].sort((a, b) => before(place(a), place(b)))
}

export const alerts = computed(() => sorted(feed.value))

function counted(source: Feed | null): Record<Level, number> {
  const counts = { blue: 0, yellow: 0, orange: 0, red: 0 }
  if (source === null) return counts
  void source.alertsVersion.value
  for (const alert of source.alerts.values()) if (alert.state !== 'cleared') counts[alert.level] += 1
  return counts
}

export const counts = computed(() => counted(feed.value))
export const liveCounts = computed(() => counted(live.value))
export const worst = (of: Record<Level, number>): Level | null => LEVELS.findLast((level) => of[level] > 0) ?? null

/** What is the matter, in few words: the message without place, level and value. A replay's own rules are not known. */
export const titleOf = (alert: ShownAlert): string =>
  (!(ui.mode === 'replay' && replay.value?.rules === 'given') && rules.value.get(alert.rule)?.title?.[locale.value]) ||
  local(alert.message[locale.value])

/** The worst active level of each sensor. */
export const levels = computed(() => {
  const result = new Map<string, Level>()
  for (const alert of alerts.value)
    if (alert.sensor !== null && isActive(alert) && !result.has(alert.sensor)) result.set(alert.sensor, alert.level)
  return result
})

/** The open incidents of more than one alert, worst first, newest first. */
export const incidents = computed<Incident[]>(() =>
  [...(feed.value?.incidents.value.values() ?? [])]
    .filter((incident) => incident.alert_count > 1)
    .sort((a, b) => rank(b.level) - rank(a.level) || (a.opened_at < b.opened_at ? 1 : -1)),
)

/** The incident chosen as it was last asked for: with its alerts, also where it is over. */
const asked = shallowRef<WholeIncident | null>(null)
export const wholeIncident = computed(() =>
  ui.mode === 'live' && asked.value?.id === ui.incident ? asked.value : null,
)
/** Why it could not be read. */
export const incidentError = ref('')
const told = computed(() => (ui.incident === null ? undefined : feed.value?.incidents.value.get(ui.incident)))
export const incident = computed<Incident | null>(() => told.value ?? wholeIncident.value)
let question = 0
let again: number | undefined

export async function readIncident(): Promise<void> {
  const mine = ++question
  window.clearTimeout(again)
  again = undefined
  incidentError.value = ''
  const id = ui.incident
  if (id === null) return
  try {
    const found = await getIncident(id)
    if (mine !== question) return
    asked.value = found
    if (found.merged_into) ui.incident = found.merged_into
  } catch (error) {
    if (mine === question) incidentError.value = i18n.global.t('loadFailed', { detail: said(error) })
  }
}

/** The alerts of the incident chosen; null where none is. */
export const ofIncident = computed(() => (incident.value ? new Set(incident.value.alert_ids) : null))

/** The sensors of its open alerts. */
export const sensorsOfIncident = computed(
  () =>
    new Set(
      alerts.value.flatMap((alert) =>
        alert.sensor !== null && alert.state !== 'cleared' && ofIncident.value?.has(alert.id) ? [alert.sensor] : [],
      ),
    ),
)

export function chooseIncident(id: string | null): void {
  ui.incident = id
  ui.alert = null
}

// What is held back

/** The holds in force and to come: those that end first, first. */
export const holds = shallowRef<Hold[]>([])
/** Why they could not be read. */
export const holdsError = ref('')
let holdsAt = 0

export async function loadHolds(): Promise<void> {
  holdsAt = Date.now()
  try {
    const found = await getHolds()
    const rankOf = (hold: Hold) => (hold.state === 'pending' ? 1 : 0)
    const ends = (hold: Hold) => (hold.until === null ? Infinity : Date.parse(hold.until))
    holds.value = found.sort((a, b) => rankOf(a) - rankOf(b) || (ends(a) < ends(b) ? -1 : Number(ends(a) > ends(b))))
    holdsError.value = ''
  } catch (error) {
    holdsError.value = said(error)
  }
}

export const isNew = (alert: ShownAlert): boolean => tick.value - alert.arrived < NEW_MS

/** The same array until something in it changes: charts are not drawn again for nothing. */
export const alertsOfSensor = computed<ShownAlert[]>((last = []) => {
  if (feed.value === null || ui.sensor === null) return []
  void feed.value.alertsVersion.value
  const known = new Map([...feed.value.ended, ...feed.value.alerts])
  const found = [...known.values()].filter((alert) => alert.sensor === ui.sensor)
  return found.length === last.length && found.every((alert, n) => alert === last[n]) ? last : found
})

// Readings

export function latestOf(sensor: string | null): Reading | undefined {
  if (feed.value === null || sensor === null) return undefined
  void feed.value.readingsVersion.value
  return feed.value.latest.get(sensor)
}

export const latestOfSensor = computed(() => {
  if (panelFeed.value === null || ui.sensor === null) return undefined
  void panelFeed.value.readingsVersion.value
  return panelFeed.value.latest.get(ui.sensor)
})

export const trail = computed(() => panelFeed.value?.trail.value ?? [])

/** Sensors that have said nothing for three of their intervals: no data never looks normal. */
export const silent = shallowRef(new Set<string>())

function listen(): void {
  const source = feed.value
  if (source === null || !source.hasSnapshot.value) return
  const at = now.value
  const found = new Set<string>()
  for (const sensor of sensors.value) {
    if (sensor.lon === null || sensor.interval_s === null) continue
    const t = source.latest.get(sensor.id)?.t
    if (t === undefined || at - t > SILENT_INTERVALS * sensor.interval_s * 1000) found.add(sensor.id)
  }
  const last = silent.value
  if (found.size !== last.size || [...found].some((id) => !last.has(id))) silent.value = found
}

// Going somewhere

export function goLive(): void {
  ui.mode = 'live'
  chooseIncident(null)
}

export function goReplay(id: string | null): void {
  ui.mode = 'replay'
  ui.replayId = id
  chooseIncident(null)
}

export function choose(sensor: string | null, alert: string | null): void {
  ui.sensor = sensor
  ui.alert = alert
}

/** A sensor from the map: with its worst alert, if it has one. */
export function chooseSensor(sensor: string): void {
  choose(sensor, alerts.value.find((alert) => alert.sensor === sensor)?.id ?? null)
}

/** `#/live`, `#/replay`, `#/replay/{id}`, each with `/sensor/{id}` behind it. */
function readHash(): void {
  const parts = location.hash.slice(2).split('/').map(decodeURIComponent)
  const at = parts.indexOf('sensor')
  const sensor = at >= 0 ? parts.slice(at + 1).join('/') || null : null
  if (sensor !== ui.sensor) choose(sensor, null)
  ui.mode = parts[0] === 'replay' ? 'replay' : 'live'
  ui.replayId = ui.mode === 'replay' && at !== 1 ? parts[1] || null : null
}

function hash(): string {
  const parts = ui.mode === 'live' ? ['live'] : ['replay', ...(ui.replayId ? [ui.replayId] : [])]
  if (ui.sensor) parts.push('sensor', ...ui.sensor.split('/'))
  return `#/${parts.map(encodeURIComponent).join('/')}`
}

async function openReplay(id: string | null): Promise<void> {
  replayFeed.value?.close()
  replayFeed.value = null
  if (replay.value?.id !== id) replay.value = null
  if (id === null) return
  replayNotice.value = ''
  try {
    const status = await getReplay(id)
    if (ui.replayId !== id) return
    replay.value = status
    replayFeed.value = new Feed(id, { bbox: EVERYWHERE })
  } catch (error) {
    if (ui.replayId === id) leaveReplay(said(error))
  }
}

function leaveReplay(notice: string): void {
  ui.replayId = null
  replayNotice.value = notice
}

/** Begin. Called once. */
export function start(): void {
  readHash()
  window.addEventListener('hashchange', readHash)
  window.setInterval(() => {
    tick.value = Date.now()
    listen()
    const isWaiting = loadError.value !== null && !isTokenWanted.value && live.value?.connection.state === 'live'
    if (isWaiting && tick.value - loadedAt > RETRY_MS) void load()
    const isSeen = ui.mode === 'live' && !document.hidden && live.value?.connection.state === 'live'
    if (isSeen && tick.value - holdsAt > HOLDS_MS) void loadHolds()
  }, 1000)
  void load()
  live.value = new Feed(null, { bbox: EVERYWHERE })

  watch(hash, (value) => history.replaceState(null, '', value), { immediate: true })
  watch(() => ui.replayId, openReplay, { immediate: true })
  watch([() => ui.incident, told], ([id], [last]) => {
    if (id !== last) void readIncident()
    else if (id !== null) again ??= window.setTimeout(readIncident, INCIDENT_MS)
  })
  watch(
    () => replayFeed.value?.isGone.value,
    (isGone) => {
      if (isGone) leaveReplay(`${i18n.global.t('replay.gone')} ${replayFeed.value?.connection.detail ?? ''}`)
    },
  )
  watch(isTokenWanted, (isWanted) => {
    if (!isWanted) void load()
  })
  watch(
    () => live.value?.connection.state,
    (state) => {
      if (state === 'live' && loadError.value !== null) void load()
    },
  )
  // Sensors can be added while the page is open.
  watch(alerts, (list) => {
    const isUnknown = list.some((alert) => alert.sensor !== null && !sensorOf.value.has(alert.sensor))
    if (isUnknown && Date.now() - loadedAt > RELOAD_MS) void load()
  })
  const hasNoPlace = computed(() => ui.sensor !== null && sensorOf.value.get(ui.sensor)?.lon === null)
  watch(
    [() => ui.sensor, feed, hasNoPlace],
    ([sensor, source]) => {
      unplaced.value?.close()
      unplaced.value = null
      if (source && sensor && hasNoPlace.value)
        unplaced.value = new Feed(ui.mode === 'live' ? null : ui.replayId, { sensors: [sensor] }, false)
      live.value?.follow(null)
      panelFeed.value?.follow(sensor)
    },
    { immediate: true },
  )
}
