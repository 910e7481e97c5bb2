/** The picture of one sensor, as ECharts wants it. */
import { moment } from '../format'
import { LEVEL_WORD, SHAPE, type Palette } from '../map/levels'
import type { Level, Locale, SensorRule } from '../model'
import { rank } from '../model'
import { DAY, widestGap, type Point, type Resolution } from './data'
import type { Option } from './echarts'
import { numberText, valueText } from './format'
import { STRINGS } from './strings'

export interface Limit {
  level: Level
  value: number
  side: SensorRule['side']
}

export interface Span {
  level: Level
  from: number
  to: number
}

export interface Picture {
  points: Point[]
  resolution: Resolution
  interval_s: number | null
  limits: Limit[]
  spans: Span[]
  from: number
  to: number
  unit: string
  locale: Locale
  palette: Palette
  width: number
  height: number
}

/** The margins about the plot; on the right stand the limits' labels. */
export const gridOf = (limits: Limit[], locale: Locale) => ({
  left: 58,
  right: !limits.length ? 16 : locale === 'zh' ? 84 : 104,
  top: 24,
  bottom: 30,
})
const LABEL = 15 // px between the labels of two limits
const RICH = { shape: { fontSize: 17, lineHeight: 14 } } // most fonts draw these shapes small
const FEW = 120 // points that are each marked

const marked = (level: Level, locale: Locale) => `{shape|${SHAPE[level]}} ${LEVEL_WORD[locale][level]}`

export function limitsOf(rules: SensorRule[]): Limit[] {
  const limits = new Map<string, Limit>()
  const add = (level: Level, value: number | null | undefined, side: Limit['side']) => {
    if (value != null) limits.set(`${level} ${value} ${side}`, { level, value, side })
  }
  for (const { levels, side } of rules.filter((rule) => rule.detector === 'threshold')) {
    for (const [level, value] of Object.entries(levels) as [Level, number][]) add(level, value, side)
  }
  return [...limits.values()].sort((a, b) => a.value - b.value || rank(a.level) - rank(b.level))
}

/** From the lowest to the highest value, and on to the next limit on either side: how near it is matters. */
function extent(points: Point[], limits: Limit[], from: number, to: number): { min: number; max: number; step: number } {
  let low = Infinity
  let high = -Infinity
  for (const p of points) {
    if (p.value === null || p.quality === 'bad' || p.t < from || p.t > to) continue
    low = Math.min(low, p.min)
    high = Math.max(high, p.max)
  }
  const values = limits.map((l) => l.value)
  if (low > high) {
    low = Math.min(...values)
    high = Math.max(...values)
  } else {
    const above = Math.min(...limits.filter((l) => l.side !== 'below' && l.value > high).map((l) => l.value))
    const below = Math.max(...limits.filter((l) => l.side === 'below' && l.value < low).map((l) => l.value))
    if (above < Infinity) high = above
    if (below > -Infinity) low = below
  }
  if (low > high) [low, high] = [0, 1] // neither values nor limits
  if (low >= 0 && low < (high - low) / 2) low = 0 // nearly there: then the picture starts at nought
  if (low === high) [low, high] = [low - Math.max(0.5, Math.abs(low) * 0.1), high + Math.max(0.5, Math.abs(high) * 0.1)]
  const rough = (high - low) / 6
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = ([1, 2, 5, 10].find((n) => n * power >= rough) ?? 10) * power
  return { min: Math.floor(low / step) * step, max: Math.ceil((high + step * 0.1) / step) * step, step }
}

/** Values moved apart so that no two are nearer than `least`, each as near to its place as can be; ascending. */
export function spread(wanted: number[], least: number): number[] {
  const places: number[] = []
  for (const value of wanted) places.push(Math.max(value, (places[places.length - 1] ?? -Infinity) + least))
  return places
}

export function optionOf(picture: Picture): Option {
  const { points, resolution, limits, spans, from, to, unit, locale, palette, width, height } = picture
  const words = STRINGS[locale]
  const grid = gridOf(limits, locale)
  const y = extent(points, limits, from, to)
  const gap = widestGap(points, resolution, picture.interval_s)
  const isLong = to - from > 100 * DAY
  const isBool = unit === 'bool'

  const line: ([number, number] | [number, null])[] = []
  const low: ([number, number] | [number, null])[] = []
  const band: ([number, number] | [number, null])[] = []
  const marks: { value: [number, number]; symbolSize: number; itemStyle: object }[] = []
  const crosses: [number, number][] = []
  const isFew = points.length <= FEW
  let last = -Infinity // of the point before, if it was drawn
  points.forEach((p, n) => {
    if (p.quality === 'bad' || p.value === null) {
      // A bad value can be anything: what lies outside the picture is shown at its edge.
      if (p.value !== null) crosses.push([p.t, Math.max(y.min, Math.min(y.max, p.value))])
      line.push([p.t, null])
      last = -Infinity
      return
    }
    if (last > -Infinity && p.t - last > gap) {
      for (const list of [line, low, band]) list.push([last + 1, null])
      last = -Infinity
    }
    line.push([p.t, p.value])
    if (resolution !== 'raw') {
      low.push([p.t, p.min])
      band.push([p.t, p.max - p.min])
    }
    const next = points[n + 1]
    const isAlone = last === -Infinity && (!next || next.value === null || next.quality === 'bad' || next.t - p.t > gap)
    if (p.quality === 'suspect') {
      marks.push({
        value: [p.t, p.value],
        symbolSize: 8,
        itemStyle: { color: palette.panel, borderColor: palette.text, borderWidth: 1.5 },
      })
    } else if (isFew || isAlone) {
      marks.push({ value: [p.t, p.value], symbolSize: 4, itemStyle: { color: palette.series } })
    }
    last = p.t
  })

  const pixels = height - grid.top - grid.bottom
  const isShown = (value: number) => value >= y.min && value <= y.max
  const shown = limits.filter((l) => isShown(l.value))
  const wanted = shown.map((l) => ((l.value - y.min) / (y.max - y.min)) * pixels)
  const places = spread(wanted, LABEL)
  const sign = { above: '≥', below: '≤', either: '±' }
  const lines = shown.map((l, n) => ({
    yAxis: l.value,
    lineStyle: { color: palette.levels[l.level], type: 'dashed' as const, width: 1.2 },
    label: {
      formatter: `${marked(l.level, locale)} ${sign[l.side]}${numberText(l.value)}`,
      rich: RICH,
      color: palette.levels[l.level],
      offset: [0, wanted[n] - places[n]],
    },
  }))

  const perPixel = (to - from) / Math.max(1, width - grid.left - grid.right)
  const rows: number[] = [] // where the last label of each row ends
  const areas = spans
    .filter((s) => s.to > from && s.from < to)
    .map((s) => {
      const start = Math.max(s.from, from)
      const end = Math.min(s.to, to)
      const room = 24 + 12 * LEVEL_WORD[locale][s.level].length
      let row = -1
      if ((end - start) / perPixel > room) {
        row = rows.findIndex((used) => used < start)
        if (row < 0) row = rows.push(0) - 1
        rows[row] = start + room * perPixel
      }
      return [
        {
          xAxis: start,
          itemStyle: { color: palette.levels[s.level], opacity: 0.14 },
          label: {
            show: row >= 0,
            position: 'insideTopLeft' as const,
            formatter: marked(s.level, locale),
            rich: RICH,
            color: palette.levels[s.level],
            fontSize: 12,
            offset: [0, row * 15],
          },
        },
        { xAxis: end },
      ]
    }) as [{ xAxis: number }, { xAxis: number }][]

  const axisLabel = { color: palette.muted, fontFamily: palette.font, fontSize: 12 }
  return {
    animation: false,
    textStyle: { fontFamily: palette.font },
    grid: { ...grid, outerBoundsMode: 'none' },
    tooltip: {
      trigger: 'axis',
      renderMode: 'richText',
      confine: true,
      transitionDuration: 0,
      backgroundColor: palette.panel,
      borderColor: palette.line,
      textStyle: { color: palette.text, fontSize: 12, fontFamily: palette.font },
      axisPointer: { lineStyle: { color: palette.muted } },
      formatter: (hits: unknown) => {
        const t = (hits as { value: [number, number] }[])[0]?.value[0]
        const p = points.find((one) => one.t === t)
        if (!p) return ''
        const text = (value: number | null) => valueText(value, unit, locale)
        if (resolution === 'raw') {
          return `${moment(p.t)}\n${text(p.value)}  ${p.quality === 'good' ? '' : words.quality[p.quality]}`
        }
        return [
          `${moment(p.t)}  ${words.resolution[resolution]}`,
          `${words.mean} ${text(p.value)}`,
          `${words.min} ${text(p.min)}`,
          `${words.max} ${text(p.max)}`,
          words.points(p.count),
        ].join('\n')
      },
    },
    xAxis: {
      type: 'time',
      min: from,
      max: to,
      axisLine: { onZero: false, lineStyle: { color: palette.line } },
      axisTick: { lineStyle: { color: palette.line } },
      splitLine: { show: false },
      axisLabel: {
        ...axisLabel,
        hideOverlap: true,
        formatter: {
          year: isLong ? '{yyyy}' : '{yyyy}-{MM}-{dd}',
          month: isLong ? '{yyyy}-{MM}' : '{MM}-{dd}',
          day: '{MM}-{dd}',
          hour: '{HH}:{mm}',
          minute: '{HH}:{mm}',
          second: '{HH}:{mm}:{ss}',
          millisecond: '{HH}:{mm}:{ss}',
        },
      },
    },
    yAxis: {
      type: 'value',
      name: isBool ? '' : unit,
      nameTextStyle: { color: palette.muted, fontSize: 12, align: 'right', padding: [0, 6, -4, 0] },
      min: isBool ? 0 : y.min,
      max: isBool ? 1 : y.max,
      interval: isBool ? 1 : y.step,
      axisLabel: { ...axisLabel, formatter: (value: number) => (isBool ? valueText(value, unit, locale) : numberText(value)) },
      splitLine: { lineStyle: { color: palette.grid } },
    },
    series: [
      {
        id: 'low',
        type: 'line',
        data: low,
        stack: 'band',
        stackStrategy: 'all',
        showSymbol: false,
        silent: true,
        lineStyle: { opacity: 0 },
        tooltip: { show: false },
      },
      {
        id: 'band',
        type: 'line',
        data: band,
        stack: 'band',
        stackStrategy: 'all',
        showSymbol: false,
        silent: true,
        lineStyle: { opacity: 0 },
        areaStyle: { color: palette.series, opacity: 0.28 },
        tooltip: { show: false },
      },
      {
        id: 'line',
        type: 'line',
        data: line,
        step: isBool && resolution === 'raw' ? 'end' : false,
        showSymbol: false,
        lineStyle: { color: palette.series, width: 1.5 },
        itemStyle: { color: palette.series },
        markLine: {
          silent: true,
          symbol: 'none',
          animation: false,
          label: { position: 'end', distance: 4, fontSize: 12, align: 'left' },
          data: lines,
        },
        markArea: { silent: true, animation: false, data: areas },
      },
      { id: 'marks', type: 'scatter', data: marks, silent: true, tooltip: { show: false } },
      {
        id: 'bad',
        type: 'scatter',
        data: crosses,
        symbol: 'path://M0,0L10,10M10,0L0,10',
        symbolSize: 8,
        itemStyle: { color: 'none', borderColor: palette.muted, borderWidth: 1.5 },
      },
    ],
  }
}
