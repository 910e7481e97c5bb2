/** The WebSocket of live alerts and readings, or of a replay (the same frames): what is known now, kept current. */
import { reactive, shallowRef } from 'vue'
import { address, getAlert, getReplay, isTokenWanted, token, ApiError } from './api'
import { rank, type Alert, type AlertEvent, type Flood, type Incident, type Quality, type Reading, type ReplayState } from './model'

const FIRST_RETRY_MS = 300
const LAST_RETRY_MS = 5000
const OPENING_MS = 5000
const SILENT_MS = 25_000 // the service pings every 20 s
// A connection can die without a word. After this silence the service is asked whether it is there, so that the page
// says so within 5 s: silence + one tick + the time it has to answer.
const QUIET_MS = 1500
const TICK_MS = 500
const ANSWER_MS = 2000
const DRAW_MS = 100 // nobody reads faster changes
const FADE_MS = 2500
const TRAIL_MOST = 5000
const ENDED_MOST = 2000
const REPAIR_MS = 500
const FIRST_READINGS_MS = 2000
const MOVING_MS = 60_000
const PAST_MS = 3_600_000
const UNAUTHORISED = 4401

/** An alert with what sorting and showing need. */
export interface ShownAlert extends Alert {
  raised: number
  /** When it came to this page, by its own clock; 0 = was there already. */
  arrived: number
}

export interface Clock {
  time: number
  state: ReplayState
  speed: number
}

export interface ReadingsWanted {
  bbox?: [number, number, number, number]
  sensors?: string[]
}

type Frame = { replay?: string } & (
  | { type: 'snapshot'; epoch?: string; seq: number; alerts: Alert[]; incidents?: Incident[]; flood?: Flood }
  | { type: 'incident'; incident: Incident }
  | { type: 'flood'; flood: Flood }
  | { type: 'alert'; seq: number; event: AlertEvent }
  | { type: 'readings'; items: { sensor: string; observed_at: string; value: number | null; quality: Quality }[] }
  | { type: 'ping'; seq: number }
  | { type: 'clock'; time: string; state: ReplayState; speed: number; seq: number }
  | { type: 'gap'; from: number; to: number }
  | { type: 'error'; detail: string }
)

export class Feed {
  readonly connection = reactive({
    state: 'connecting' as 'connecting' | 'live' | 'lost',
    since: Date.now(),
    attempts: 0,
    /** What the service said when it closed, if it said something. */
    detail: '',
  })
  /** All alerts but those that have ended; those stay a moment, to be seen going. Drawn again when `alertsVersion` grows. */
  readonly alerts = new Map<string, ShownAlert>()
  readonly alertsVersion = shallowRef(0)
  /** Alerts that ended while this page looked. */
  readonly ended = new Map<string, ShownAlert>()
  /** The latest reading of each sensor. Drawn again when `readingsVersion` grows. */
  readonly latest = new Map<string, Reading>()
  readonly readingsVersion = shallowRef(0)
  /** Readings of the followed sensor since it is followed. */
  readonly trail = shallowRef<Reading[]>([])
  /** The open incidents, of live data only. */
  readonly incidents = shallowRef(new Map<string, Incident>())
  readonly flood = shallowRef<Flood | null>(null)
  readonly clock = shallowRef<Clock | null>(null)
  readonly hasSnapshot = shallowRef(false)
  /** The replay is no longer there, or over for good; why, `connection.detail` may say. */
  readonly isGone = shallowRef(false)

  private newest = 0
  private advancedAt = 0
  private followed: string | null = null
  private socket: WebSocket | null = null
  private epoch: string | null = null
  private seq = 0
  private heardAt = 0
  private answeredAt = 0
  private openedAt = 0
  private isAsking = false
  private isClosed = false
  private retry: number | undefined
  private readonly ticker: number
  private readonly dirty = { alerts: false, readings: false, trail: false }
  private newTrail: Reading[] = []
  private drawnAt = 0
  private isDrawing = false
  private readonly doubtful = new Set<string>()
  private repair: number | undefined
  private readonly wakeUp = () => {
    if (this.connection.state === 'lost') this.reconnect(0)
    else this.tick()
  }

  /** `replay`: its id; null = live. `withAlerts` false: readings only. */
  constructor(
    private readonly replay: string | null,
    private readonly wanted: ReadingsWanted,
    private readonly withAlerts = true,
  ) {
    this.ticker = window.setInterval(() => this.tick(), TICK_MS)
    for (const name of ['online', 'offline', 'focus']) window.addEventListener(name, this.wakeUp)
    this.open()
  }

  close(): void {
    this.isClosed = true
    for (const name of ['online', 'offline', 'focus']) window.removeEventListener(name, this.wakeUp)
    window.clearInterval(this.ticker)
    window.clearTimeout(this.retry)
    window.clearTimeout(this.repair)
    this.drop()
  }

  /** Keep the readings of this sensor from now on. */
  follow(sensor: string | null): void {
    this.followed = sensor
    this.newTrail = []
    this.trail.value = []
  }

  /** Where devices send recorded data as it was then: the time that they have come to. Else null. */
  pastTime(now: number): number | null {
    const isMoving = this.advancedAt - this.connection.since > FIRST_READINGS_MS && now - this.advancedAt < MOVING_MS
    return isMoving && now - this.newest > PAST_MS ? this.newest : null
  }

  // Connection

  private open(): void {
    const url = address(this.replay === null ? 'ws/v1/live' : `ws/v1/replays/${encodeURIComponent(this.replay)}`)
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
    const socket = new WebSocket(url, ['cimtwin'])
    this.socket = socket
    this.openedAt = Date.now()
    socket.onopen = () => {
      this.heardAt = Date.now()
      // A replay may have been moved meanwhile: it always begins with a snapshot.
      const resume = this.epoch !== null && this.replay === null ? { epoch: this.epoch, seq: this.seq } : null
      const alerts = this.withAlerts ? { min_level: 'blue' } : null
      const given = token() ?? undefined // here, because a subprotocol cannot hold every sign that a token can
      const incidents = this.withAlerts && this.replay === null
      if (resume) this.incidents.value = new Map() // what stands is told again
      socket.send(JSON.stringify({ type: 'subscribe', alerts, incidents, readings: this.wanted, resume, token: given }))
    }
    socket.onmessage = (message) => {
      this.heardAt = Date.now()
      this.take(JSON.parse(message.data as string) as Frame)
    }
    socket.onclose = (event) => {
      if (socket !== this.socket) return
      this.socket = null
      if (event.code === UNAUTHORISED) isTokenWanted.value = true
      this.lose()
    }
  }

  /** Let go of the socket; nothing it still says counts. */
  private drop(): void {
    const socket = this.socket
    this.socket = null
    if (socket === null) return
    socket.onopen = socket.onmessage = socket.onclose = null
    socket.close()
  }

  private lose(): void {
    this.drop()
    if (this.isClosed) return
    const { connection } = this
    if (connection.state === 'live')
      Object.assign(connection, { state: 'lost', since: Math.max(this.heardAt, this.answeredAt), attempts: 0 })
    else if (Date.now() - connection.since > LAST_RETRY_MS || connection.attempts > 0) connection.state = 'lost'
    const wait = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 1.7 ** connection.attempts) * (0.7 + 0.6 * Math.random())
    this.reconnect(wait)
  }

  private reconnect(wait: number): void {
    window.clearTimeout(this.retry)
    this.retry = window.setTimeout(async () => {
      if (isTokenWanted.value) {
        this.reconnect(FIRST_RETRY_MS)
        return
      }
      this.connection.attempts += 1
      if (this.replay !== null && (await this.isReplayGone(this.replay))) return
      if (!this.isClosed && this.socket === null) this.open()
    }, wait)
  }

  private async isReplayGone(id: string): Promise<boolean> {
    try {
      const { state, error } = await getReplay(id)
      this.connection.detail = error ?? ''
      this.isGone.value = state === 'stopped' || state === 'failed'
    } catch (error) {
      this.isGone.value = error instanceof ApiError && error.status === 404
    }
    return this.isGone.value
  }

  private tick(): void {
    const now = Date.now()
    if (this.socket === null) return
    if (this.socket.readyState !== WebSocket.OPEN) {
      if (now - this.openedAt > OPENING_MS) this.lose()
    } else if (now - this.heardAt > SILENT_MS) this.lose()
    else if (now - Math.max(this.heardAt, this.answeredAt) > QUIET_MS) void this.ask(this.socket)
  }

  /** Is anybody there? */
  private async ask(socket: WebSocket): Promise<void> {
    if (this.isAsking) return
    this.isAsking = true
    const heard = this.heardAt
    let isThere = false
    try {
      const signal = AbortSignal.timeout(ANSWER_MS)
      isThere = (await fetch(address('healthz'), { cache: 'no-store', signal })).ok
    } catch {
      // not there
    }
    this.isAsking = false
    if (isThere) this.answeredAt = Date.now()
    else if (socket === this.socket && heard === this.heardAt) this.lose()
  }

  // Frames

  private take(frame: Frame): void {
    switch (frame.type) {
      case 'snapshot':
        this.epoch = frame.epoch ?? null
        this.seq = frame.seq
        this.begin(frame.alerts)
        this.incidents.value = new Map((frame.incidents ?? []).map((incident) => [incident.id, incident]))
        this.flood.value = frame.flood ?? null
        this.connected()
        break
      case 'incident': {
        const open = new Map(this.incidents.value)
        if (frame.incident.state === 'open') open.set(frame.incident.id, frame.incident)
        else open.delete(frame.incident.id)
        this.incidents.value = open
        break
      }
      case 'flood':
        this.flood.value = frame.flood
        break
      case 'ping':
        this.seq = Math.max(this.seq, frame.seq)
        this.connected()
        break
      case 'alert':
        if (frame.seq <= this.seq) break
        this.seq = frame.seq
        this.apply(frame.event)
        break
      case 'readings': {
        let newest = 0
        for (const r of frame.items) {
          const reading = { sensor: r.sensor, t: Date.parse(r.observed_at), value: r.value, quality: r.quality }
          this.latest.set(r.sensor, reading)
          if (reading.t > this.newest) {
            this.newest = reading.t
            this.advancedAt = this.heardAt
          }
          if (r.sensor === this.followed && reading.t > this.trailEnd()) this.newTrail.push(reading)
          newest = Math.max(newest, reading.t)
        }
        // A replay tells its clock a few times a second; what it has played is never after its time.
        if (this.clock.value && newest > this.clock.value.time) this.clock.value = { ...this.clock.value, time: newest }
        this.dirty.readings = true
        this.dirty.trail ||= this.newTrail.length > 0
        this.draw()
        break
      }
      case 'clock':
        this.clock.value = { time: Date.parse(frame.time), state: frame.state, speed: frame.speed }
        this.connected()
        break
      case 'error':
        this.connection.detail = frame.detail
        break
      case 'gap': // the snapshot that follows says all
        break
    }
  }

  private trailEnd(): number {
    return (this.newTrail.at(-1) ?? this.trail.value.at(-1))?.t ?? -Infinity
  }

  private connected(): void {
    if (this.connection.state !== 'live')
      Object.assign(this.connection, { state: 'live', since: Date.now(), attempts: 0, detail: '' })
  }

  private begin(alerts: Alert[]): void {
    this.alerts.clear()
    this.doubtful.clear()
    for (const alert of alerts) this.alerts.set(alert.id, shown(alert, 0))
    if (this.replay !== null) {
      // After a jump nothing from before it holds.
      this.ended.clear()
      this.latest.clear()
      this.newTrail = []
      this.trail.value = []
      this.dirty.readings = true
    }
    this.hasSnapshot.value = true
    this.dirty.alerts = true
    this.draw()
  }

  private apply(event: AlertEvent): void {
    const known = this.alerts.get(event.alert_id)
    if (event.state === 'cleared') {
      if (known && known.state !== 'cleared')
        this.end({ ...known, state: 'cleared', cleared_at: known.cleared_at ?? event.observed_at })
    } else if (event.transition === 'withdrawn') {
      // It takes back something said earlier; how the alert stands without it, only the service knows.
      this.doubt(event.alert_id)
    } else {
      this.put(known ? changed(known, event) : fromEvent(event))
      if (!known && event.transition !== 'raised') this.doubt(event.alert_id) // its beginning is not in this event
    }
    this.dirty.alerts = true
    this.draw()
  }

  private put(alert: ShownAlert): void {
    this.alerts.set(alert.id, alert)
    this.ended.delete(alert.id)
  }

  private end(alert: ShownAlert): void {
    this.alerts.set(alert.id, alert)
    if (!alert.flags.includes('withdrawn')) {
      this.ended.set(alert.id, alert)
      if (this.ended.size > ENDED_MOST) this.ended.delete(this.ended.keys().next().value as string)
    }
    window.setTimeout(() => {
      if (this.alerts.get(alert.id) !== alert) return // raised again
      this.alerts.delete(alert.id)
      this.dirty.alerts = true
      this.draw()
    }, FADE_MS)
  }

  /** Ask for the whole alert, a moment later: by then it may be several. A replay's alerts are nowhere to be asked for. */
  private doubt(id: string): void {
    if (this.replay !== null) return
    this.doubtful.add(id)
    this.repair ??= window.setTimeout(() => void this.mend(), REPAIR_MS)
  }

  private async mend(): Promise<void> {
    for (const id of [...this.doubtful]) {
      if (this.isClosed || this.connection.state !== 'live') break
      this.doubtful.delete(id)
      const before = this.alerts.get(id)
      try {
        const { events: _, ...alert } = await getAlert(id)
        if (this.alerts.get(id) !== before) this.doubtful.add(id) // an event came meanwhile that the answer may not have
        else if (alert.state !== 'cleared') this.put(shown(alert, before?.arrived ?? 0))
        else if (before && before.state !== 'cleared') this.end(shown(alert, before.arrived))
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 404) this.doubtful.add(id)
      }
    }
    this.repair = this.doubtful.size ? window.setTimeout(() => void this.mend(), LAST_RETRY_MS) : undefined
    this.dirty.alerts = true
    this.draw()
  }

  // Drawing

  /** Tell who shows it, soon, and not more often than anybody can read. By a timer, because a page in a hidden tab has
   * no animation frames, and its title counts. */
  private draw(): void {
    if (this.isDrawing) return
    this.isDrawing = true
    const wait = Math.max(0, this.drawnAt + DRAW_MS - performance.now())
    window.setTimeout(() => this.flush(), wait)
  }

  private flush(): void {
    this.isDrawing = false
    this.drawnAt = performance.now()
    if (this.dirty.trail) {
      this.trail.value = [...this.trail.value, ...this.newTrail].slice(-TRAIL_MOST)
      this.newTrail = []
    }
    if (this.dirty.alerts) this.alertsVersion.value += 1
    if (this.dirty.readings) this.readingsVersion.value += 1
    Object.assign(this.dirty, { alerts: false, readings: false, trail: false })
  }
}

const shown = (alert: Alert, arrived: number): ShownAlert => ({ ...alert, raised: Date.parse(alert.raised_at), arrived })

function fromEvent(event: AlertEvent): ShownAlert {
  const { observed_at, level, value } = event
  return {
    id: event.alert_id,
    rule: event.rule,
    rule_version: event.rule_version,
    sensor: event.sensor,
    asset: event.asset,
    tenant: event.tenant,
    domain: event.domain,
    level,
    peak_level: level,
    state: event.state,
    flags: event.flags ?? [],
    suppressed_by: [],
    shelved_until: null,
    assignee: null,
    verdict: null,
    since: observed_at,
    raised_at: observed_at,
    cleared_at: null,
    value,
    peak_value: value,
    threshold: event.threshold,
    place: { ...event.place, name: event.asset ?? event.sensor?.split('/')[0] ?? null },
    instruction: { zh: '', en: '' },
    message: event.message,
    ...event.detail,
    raised: Date.parse(observed_at),
    arrived: Date.now(),
  }
}

/** The alert after one more event. */
function changed(alert: ShownAlert, event: AlertEvent): ShownAlert {
  const { level, state, value, threshold, message, observed_at } = event
  const flags = event.flags ?? alert.flags
  const now: ShownAlert = { ...alert, level, state, value, threshold, message, flags, ...event.detail }
  if (rank(level) > rank(alert.peak_level)) now.peak_level = level
  if (event.transition === 'cleared') now.cleared_at = observed_at
  else if (state.startsWith('active')) now.cleared_at = null
  if (event.transition === 'raised') Object.assign(now, { raised_at: observed_at, raised: Date.parse(observed_at) })
  return now
}
