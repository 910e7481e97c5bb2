/** Times, ages and numbers as people read them, in the browser's time zone. */
import { i18n } from './i18n'
import type { Kind } from './model'

const two = (n: number): string => String(n).padStart(2, '0')

export const day = (t: number): string => {
  const d = new Date(t)
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`
}

export const clock = (t: number): string => {
  const d = new Date(t)
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`
}

export const moment = (t: number): string => `${day(t)} ${clock(t)}`

/** Hours and minutes, with the day where it is another one. */
export const shortly = (t: number): string =>
  day(t) === day(Date.now()) ? clock(t).slice(0, 5) : moment(t).slice(5, 16)

/** A text with its UTC times (`2026-07-01T08:00:00Z`) as `moment` tells them. */
export const local = (text: string): string =>
  text.replace(/\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\b/g, (utc) => {
    const t = Date.parse(utc)
    return Number.isNaN(t) ? utc : moment(t)
  })

/** As `<input type="datetime-local" step="1">` has it. */
export const localInput = (t: number): string => `${day(t)}T${clock(t)}`

export const zone = (): string => Intl.DateTimeFormat().resolvedOptions().timeZone

/** A span in words, in at most two units. */
export function span(ms: number): string {
  const { t } = i18n.global
  const s = Math.max(0, Math.floor(ms / 1000))
  if (s < 60) return t('unit.s', { n: s })
  const min = Math.floor(s / 60)
  if (min < 60) return t('unit.min', { n: min })
  const h = Math.floor(min / 60)
  if (h < 24) return t('unit.h', { h, m: two(min % 60) })
  return t('unit.d', { d: Math.floor(h / 24), h: h % 24 })
}

const four = new Intl.NumberFormat('en', { maximumSignificantDigits: 4, useGrouping: false })

/** A value of a kind, without its unit. */
export function quantity(value: number | null, kind: Kind | undefined): string {
  if (value === null) return '—'
  if (kind?.unit === 'bool') return i18n.global.t(value ? 'yes' : 'no')
  return four.format(value)
}

export const unitOf = (kind: Kind | undefined): string => (kind && kind.unit !== 'bool' ? kind.unit : '')
