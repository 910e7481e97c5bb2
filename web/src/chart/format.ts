/** Values as the map and the chart write them: with as many digits as an axis needs. */
import type { Locale } from '../model'

export function numberText(value: number): string {
  const size = Math.abs(value)
  if (size >= 1e7 || (size > 0 && size < 1e-3)) return value.toExponential(2)
  return String(Number(value.toFixed(size >= 1000 ? 1 : size >= 100 ? 2 : 3)))
}

export function valueText(value: number | null, unit: string | undefined, locale: Locale): string {
  if (value === null) return '–'
  if (unit === 'bool') return locale === 'zh' ? (value ? '是' : '否') : value ? 'yes' : 'no'
  return unit ? `${numberText(value)} ${unit}` : numberText(value)
}
