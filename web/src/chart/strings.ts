import type { Locale, Quality } from '../model'
import type { Resolution } from './data'

interface Strings {
  close: string
  quality: Record<Quality, string>
  resolution: Record<Resolution, string>
  ranges: Record<'1h' | '6h' | '24h' | '7d' | '30d' | '1y' | 'replay', string>
  chart: string
  keys: string
  loading: string
  failed: string
  retry: string
  empty: string
  newest: string
  stale: (time: string) => string
  never: string
  rules: string
  noRules: string
  detector: Record<string, string>
  limit: Record<'above' | 'below' | 'either', (limit: string) => string>
  range: (min: string, max: string) => string
  asset: string
  tenant: string
  min: string
  max: string
  mean: string
  last: string
  points: (n: number) => string
}

export const STRINGS: Record<Locale, Strings> = {
  zh: {
    close: '关闭',
    quality: { good: '正常', suspect: '可疑', bad: '坏值' },
    resolution: { raw: '原始读数', '1m': '1 分钟', '5m': '5 分钟', '1h': '1 小时', '1d': '1 天' },
    ranges: { '1h': '1 时', '6h': '6 时', '24h': '24 时', '7d': '7 天', '30d': '30 天', '1y': '1 年', replay: '回放时段' },
    chart: '测值曲线',
    keys: '左右方向键平移，加减号缩放，End 到最新数据',
    loading: '读取中…',
    failed: '读取失败',
    retry: '重试',
    empty: '该时段没有数据',
    newest: '到最新数据',
    stale: (time) => `最新数据的时间为 ${time}，并非当前`,
    never: '从未上报',
    rules: '监测规则',
    noRules: '没有规则监测该测点',
    detector: { rate: '变化过快', stuck: '数值不变', offline: '停止上报' },
    limit: { above: (x) => `≥ ${x}`, below: (x) => `≤ ${x}`, either: (x) => `± ${x}` },
    range: (min, max) => `超出 ${min} ～ ${max}`,
    asset: '设施',
    tenant: '单位',
    min: '最小',
    max: '最大',
    mean: '平均',
    last: '最新',
    points: (n) => `${n} 点`,
  },
  en: {
    close: 'Close',
    quality: { good: 'good', suspect: 'suspect', bad: 'bad' },
    resolution: { raw: 'raw readings', '1m': '1 min', '5m': '5 min', '1h': '1 hour', '1d': '1 day' },
    ranges: { '1h': '1 h', '6h': '6 h', '24h': '24 h', '7d': '7 d', '30d': '30 d', '1y': '1 y', replay: 'Replay' },
    chart: 'Chart of the values',
    keys: 'Left and right arrow pan, plus and minus zoom, End goes to the newest data',
    loading: 'Loading…',
    failed: 'Could not be loaded',
    retry: 'Try again',
    empty: 'No data in this span',
    newest: 'Go to the newest data',
    stale: (time) => `The newest data is of ${time}, not of now`,
    never: 'never heard',
    rules: 'Rules that watch it',
    noRules: 'No rule watches this sensor',
    detector: { rate: 'changes too fast', stuck: 'does not change', offline: 'stops reporting' },
    limit: { above: (x) => `≥ ${x}`, below: (x) => `≤ ${x}`, either: (x) => `± ${x}` },
    range: (min, max) => `outside ${min} to ${max}`,
    asset: 'Asset',
    tenant: 'Tenant',
    min: 'Min',
    max: 'Max',
    mean: 'Mean',
    last: 'Last',
    points: (n) => (n === 1 ? '1 point' : `${n} points`),
  },
}
