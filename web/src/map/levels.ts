/** What the map and the chart share about levels and colours. */
import type { Level, Locale } from '../model'

export const SHAPE: Record<Level, string> = { blue: '●', yellow: '▲', orange: '◆', red: '■' }
export const LEVEL_WORD: Record<Locale, Record<Level, string>> = {
  zh: { blue: '蓝', yellow: '黄', orange: '橙', red: '红' },
  en: { blue: 'Blue', yellow: 'Yellow', orange: 'Orange', red: 'Red' },
}

/** The colours of the style sheet, for what is drawn on a canvas. */
export interface Palette {
  back: string
  panel: string
  text: string
  muted: string
  faint: string
  quiet: string
  line: string
  grid: string
  series: string
  font: string
  levels: Record<Level, string>
}

export function paletteOf(element: Element): Palette {
  const style = getComputedStyle(element)
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim()
  return {
    back: colour('bg'),
    panel: colour('panel'),
    text: colour('text'),
    muted: colour('muted'),
    faint: colour('faint'),
    quiet: colour('quiet'),
    line: colour('line'),
    grid: colour('grid'),
    series: colour('series'),
    font: style.fontFamily,
    levels: {
      blue: colour('level-blue'),
      yellow: colour('level-yellow'),
      orange: colour('level-orange'),
      red: colour('level-red'),
    },
  }
}
