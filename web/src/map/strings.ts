import type { Locale } from '../model'

interface Strings {
  map: string
  keys: string
  empty: string
  without: (n: number) => string
  away: (n: number) => string
  all: string
  alerts: string
  area: string
  closer: string
  farther: string
  north: string
  silent: string
  more: (n: number) => string
  summary: (sensors: number, alerted: number) => string
}

export const STRINGS: Record<Locale, Strings> = {
  zh: {
    map: '测点平面图',
    keys: '方向键移动，加减号缩放，0 全部，A 报警，G 下一片区，N 和 P 逐个查看报警测点，回车选中',
    empty: '还没有带坐标的测点',
    without: (n) => `无坐标 ${n}`,
    away: (n) => `图外报警 ${n}`,
    all: '全部测点（0）',
    alerts: '报警测点（A）',
    area: '下一片区（G）',
    closer: '放大（+）',
    farther: '缩小（−）',
    north: '北',
    silent: '未上报',
    more: (n) => `此处另有 ${n} 个测点，再次点击切换`,
    summary: (sensors, alerted) => `共 ${sensors} 个测点，其中 ${alerted} 个有报警`,
  },
  en: {
    map: 'Plan of the sensors',
    keys: 'Arrow keys move, plus and minus zoom, 0 all, A alerts, G next area, N and P step through sensors with alerts, Enter selects',
    empty: 'No sensor with coordinates yet',
    without: (n) => `Without coordinates ${n}`,
    away: (n) => `Alerts out of view ${n}`,
    all: 'All sensors (0)',
    alerts: 'Sensors with alerts (A)',
    area: 'Next area (G)',
    closer: 'Zoom in (+)',
    farther: 'Zoom out (−)',
    north: 'N',
    silent: 'silent',
    more: (n) => `${n} more here: click again to step through`,
    summary: (sensors, alerted) => `${sensors} sensors, ${alerted} of them with alerts`,
  },
}
