/** Drawing on the map's canvas; all lengths in CSS pixels. */
import type { Level } from '../model'
import type { Palette } from './levels'
import type { Places } from './places'
import { latAt, lonAt, rounded, xOf, yOf, type View } from './view'

export const RADIUS: Record<Level, number> = { blue: 5, yellow: 6.5, orange: 7, red: 7 }
export const DOT = 2.5
const HALO = 14 // px about a red one
const HALOS = 12 // more of them would say nothing any more
const LABELS = 40 // names on the picture at most
const LONGEST = 26 // characters of a name

function trace(ctx: CanvasRenderingContext2D, level: Level, x: number, y: number) {
  const r = RADIUS[level]
  ctx.beginPath()
  if (level === 'blue') {
    ctx.arc(x, y, r, 0, 2 * Math.PI)
  } else if (level === 'yellow') {
    ctx.moveTo(x, y - r)
    ctx.lineTo(x + r, y + r * 0.8)
    ctx.lineTo(x - r, y + r * 0.8)
  } else if (level === 'orange') {
    ctx.moveTo(x, y - r)
    ctx.lineTo(x + r, y)
    ctx.lineTo(x, y + r)
    ctx.lineTo(x - r, y)
  } else {
    ctx.rect(x - r + 1, y - r + 1, 2 * r - 2, 2 * r - 2)
  }
  ctx.closePath()
}

function sprite(size: number, ratio: number, draw: (ctx: CanvasRenderingContext2D) => void): HTMLCanvasElement {
  const canvas = document.createElement('canvas')
  canvas.width = canvas.height = Math.ceil(size * ratio)
  const ctx = canvas.getContext('2d') as CanvasRenderingContext2D
  ctx.scale(ratio, ratio)
  ctx.translate(size / 2, size / 2)
  draw(ctx)
  return canvas
}

/** Symbols drawn once: copying one is several times cheaper than drawing its outline. */
export type Symbols = Record<Level | 'halo', HTMLCanvasElement>

export function symbolsOf(palette: Palette, ratio: number): Symbols {
  const level = (name: Level) =>
    sprite(2 * HALO + 2, ratio, (ctx) => {
      trace(ctx, name, 0, 0)
      ctx.lineJoin = 'round'
      ctx.lineWidth = 3
      ctx.strokeStyle = palette.back
      ctx.stroke()
      ctx.fillStyle = palette.levels[name]
      ctx.fill()
    })
  const halo = sprite(2 * HALO + 2, ratio, (ctx) => {
    ctx.beginPath()
    ctx.arc(0, 0, HALO, 0, 2 * Math.PI)
    ctx.globalAlpha = 0.28
    ctx.fillStyle = palette.levels.red
    ctx.fill()
  })
  return { blue: level('blue'), yellow: level('yellow'), orange: level('orange'), red: level('red'), halo }
}

function stamp(ctx: CanvasRenderingContext2D, symbol: HTMLCanvasElement, x: number, y: number, ratio: number) {
  const size = symbol.width / ratio
  ctx.drawImage(symbol, x - size / 2, y - size / 2, size, size)
}

/** What changes only with the view: the graticule, the scale, and a dot for every sensor. */
export function drawStill(
  ctx: CanvasRenderingContext2D,
  view: View,
  places: Places,
  palette: Palette,
  silent: Set<string> | undefined,
  north: string,
) {
  ctx.fillStyle = palette.back
  ctx.fillRect(0, 0, view.width, view.height)
  drawGraticule(ctx, view, palette)
  drawDots(ctx, view, places, palette, silent)
  drawScale(ctx, view, palette)
  drawNorth(ctx, view, palette, north)
}

/** A dot for every sensor, but one only where several would cover each other; above them a ring for each silent one. */
function drawDots(
  ctx: CanvasRenderingContext2D,
  view: View,
  places: Places,
  palette: Palette,
  silent: Set<string> | undefined,
) {
  const columns = Math.ceil(view.width / 2) + 1
  const taken = new Uint8Array(columns * (Math.ceil(view.height / 2) + 1))
  const hollow: [number, number][] = []
  ctx.fillStyle = palette.quiet
  for (let i = 0; i < places.lon.length; i++) {
    const x = xOf(view, places.lon[i])
    const y = yOf(view, places.lat[i])
    if (x < 0 || y < 0 || x > view.width || y > view.height) continue
    if (silent?.has(places.sensors[i].id)) {
      hollow.push([x, y])
      continue
    }
    const cell = (y >> 1) * columns + (x >> 1)
    if (taken[cell]) continue
    taken[cell] = 1
    ctx.beginPath()
    ctx.arc(x, y, DOT, 0, 2 * Math.PI)
    ctx.fill()
  }
  ctx.fillStyle = palette.back
  ctx.strokeStyle = palette.quiet
  ctx.lineWidth = 1
  for (const [x, y] of hollow) {
    ctx.beginPath()
    ctx.arc(x, y, DOT, 0, 2 * Math.PI)
    ctx.fill()
    ctx.stroke()
  }
}

function drawGraticule(ctx: CanvasRenderingContext2D, view: View, palette: Palette) {
  const left = lonAt(view, 0)
  const bottom = latAt(view, view.height)
  const step = rounded((lonAt(view, 200) - left) / view.cos)
  const digits = Math.max(0, Math.ceil(-Math.log10(step)))
  ctx.strokeStyle = palette.grid
  ctx.lineWidth = 1
  ctx.fillStyle = palette.muted
  ctx.font = `11px ${palette.font}`
  ctx.textBaseline = 'top'
  ctx.textAlign = 'left'
  ctx.beginPath()
  for (let n = Math.ceil(left / step); ; n++) {
    const x = Math.round(xOf(view, n * step)) + 0.5
    if (x > view.width) break
    ctx.moveTo(x, 0)
    ctx.lineTo(x, view.height)
    if (x > 60 && x < view.width - 120) ctx.fillText(`${(n * step).toFixed(digits)}°`, x + 3, 3)
  }
  for (let n = Math.ceil(bottom / step); ; n++) {
    const y = Math.round(yOf(view, n * step)) + 0.5
    if (y < 0) break
    ctx.moveTo(0, y)
    ctx.lineTo(view.width, y)
    if (y > 20 && y < view.height - 60) ctx.fillText(`${(n * step).toFixed(digits)}°`, 4, y + 3)
  }
  ctx.stroke()
}

function drawScale(ctx: CanvasRenderingContext2D, view: View, palette: Palette) {
  const metres = rounded(130 / view.scale)
  const wide = metres * view.scale
  const y = view.height - 14.5
  ctx.strokeStyle = palette.muted
  ctx.fillStyle = palette.muted
  ctx.lineWidth = 1.5
  ctx.beginPath()
  ctx.moveTo(12, y - 5)
  ctx.lineTo(12, y)
  ctx.lineTo(12 + wide, y)
  ctx.lineTo(12 + wide, y - 5)
  ctx.stroke()
  ctx.textAlign = 'left'
  ctx.textBaseline = 'bottom'
  ctx.font = `12px ${palette.font}`
  ctx.fillText(metres >= 1000 ? `${metres / 1000} km` : `${metres} m`, 17, y - 2)
}

function drawNorth(ctx: CanvasRenderingContext2D, view: View, palette: Palette, word: string) {
  const x = view.width - 64
  ctx.fillStyle = palette.muted
  ctx.beginPath()
  ctx.moveTo(x, 10)
  ctx.lineTo(x + 6, 28)
  ctx.lineTo(x, 23)
  ctx.lineTo(x - 6, 28)
  ctx.fill()
  ctx.textAlign = 'center'
  ctx.textBaseline = 'top'
  ctx.font = `12px ${palette.font}`
  ctx.fillText(word, x, 30)
}

export interface Alerted {
  i: number // in Places
  level: Level
}

export interface Drawn extends Alerted {
  x: number
  y: number
  count: number // sensors it stands for
}

/** The sensors with alerts, given worst first; those that would lie on a worse one are only counted. */
export function drawAlerts(
  ctx: CanvasRenderingContext2D,
  view: View,
  places: Places,
  alerted: Alerted[],
  symbols: Symbols,
  ratio: number,
): Drawn[] {
  const shown: Drawn[] = []
  const cells = new Map<number, Drawn>()
  for (const { i, level } of alerted) {
    const x = xOf(view, places.lon[i])
    const y = yOf(view, places.lat[i])
    if (x < -HALO || y < -HALO || x > view.width + HALO || y > view.height + HALO) continue
    const cell = Math.floor(y / 8) * 65536 + Math.floor(x / 8)
    const there = cells.get(cell)
    if (there) {
      there.count++
    } else {
      const one = { x, y, i, level, count: 1 }
      cells.set(cell, one)
      shown.push(one)
    }
  }
  const reds = shown.filter((one) => one.level === 'red')
  if (reds.length <= HALOS) for (const { x, y } of reds) stamp(ctx, symbols.halo, x, y, ratio)
  for (let n = shown.length - 1; n >= 0; n--) stamp(ctx, symbols[shown[n].level], shown[n].x, shown[n].y, ratio)
  return shown
}

/** The names of the sensors with alerts, worst first, where there is room. */
export function drawNames(
  ctx: CanvasRenderingContext2D,
  view: View,
  places: Places,
  shown: Drawn[],
  palette: Palette,
) {
  ctx.font = `12px ${palette.font}`
  ctx.textAlign = 'left'
  ctx.textBaseline = 'middle'
  ctx.lineJoin = 'round'
  ctx.lineWidth = 3
  ctx.strokeStyle = palette.back
  ctx.fillStyle = palette.text
  const taken: { left: number; right: number; y: number }[] = []
  for (const one of shown.slice(0, 3 * LABELS)) {
    if (taken.length >= LABELS) break
    const sensor = places.sensors[one.i]
    const name = sensor.asset ?? sensor.id
    const cut = name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name
    const label = one.count > 1 ? `${cut} +${one.count - 1}` : cut
    const left = one.x + 14
    const right = left + ctx.measureText(label).width
    const free =
      right < view.width &&
      shown.every((s) => s === one || Math.abs(s.y - one.y) > 13 || s.x + 10 < left || s.x - 10 > right) &&
      taken.every((t) => Math.abs(t.y - one.y) > 15 || t.right < left || t.left > right)
    if (!free) continue
    taken.push({ left, right, y: one.y })
    ctx.strokeText(label, left, one.y)
    ctx.fillText(label, left, one.y)
  }
}

/** A ring about a sensor: the selected one, or (dashed) the one the keyboard is at. */
export function drawRing(ctx: CanvasRenderingContext2D, x: number, y: number, palette: Palette, dashed: boolean) {
  ctx.beginPath()
  ctx.arc(x, y, dashed ? 15 : 11, 0, 2 * Math.PI)
  ctx.lineWidth = 4
  ctx.strokeStyle = palette.back
  ctx.stroke()
  ctx.lineWidth = 2
  ctx.strokeStyle = palette.text
  if (dashed) ctx.setLineDash([4, 3])
  ctx.stroke()
  ctx.setLineDash([])
}

/** A thin ring about each of some sensors. */
export function drawMarks(ctx: CanvasRenderingContext2D, at: { x: number; y: number }[], palette: Palette) {
  ctx.lineWidth = 1.25
  ctx.strokeStyle = palette.text
  for (const { x, y } of at) {
    ctx.beginPath()
    ctx.arc(x, y, 11, 0, 2 * Math.PI)
    ctx.stroke()
  }
}
