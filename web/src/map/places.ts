import type { Sensor } from '../model'
import type { Box } from './view'

const CELL = 0.5 // degrees: places nearer to each other than about 50 km belong to one area

/** The sensors that can be drawn, as arrays: to look at 10,000 of them takes about 0.1 ms, so that no index is needed. */
export interface Places {
  sensors: Sensor[]
  lon: Float64Array
  lat: Float64Array
  index: Map<string, number>
  without: number // sensors without coordinates
  areas: number[][] // sensors' indexes by separate area, the largest first
}

export function placesOf(all: Sensor[]): Places {
  const sensors = all.filter((s) => s.lon !== null && s.lat !== null)
  const lon = Float64Array.from(sensors, (s) => s.lon as number)
  const lat = Float64Array.from(sensors, (s) => s.lat as number)
  const index = new Map(sensors.map((s, i) => [s.id, i]))
  return { sensors, lon, lat, index, without: all.length - sensors.length, areas: areasOf(lon, lat) }
}

export function boxOf(places: Places, indexes: Iterable<number>): Box | null {
  const box = { west: Infinity, south: Infinity, east: -Infinity, north: -Infinity }
  for (const i of indexes) {
    box.west = Math.min(box.west, places.lon[i])
    box.east = Math.max(box.east, places.lon[i])
    box.south = Math.min(box.south, places.lat[i])
    box.north = Math.max(box.north, places.lat[i])
  }
  return box.west <= box.east ? box : null
}

/** Cells that touch are one area. Cities far apart would be two dots in one picture, so each can be fitted to. */
function areasOf(lon: Float64Array, lat: Float64Array): number[][] {
  const cells = new Map<number, number[]>()
  const key = (x: number, y: number) => y * 1024 + x
  lon.forEach((value, i) => {
    const cell = key(Math.floor((value + 180) / CELL), Math.floor((lat[i] + 90) / CELL))
    const there = cells.get(cell)
    if (there) there.push(i)
    else cells.set(cell, [i])
  })
  const areas: number[][] = []
  for (const first of [...cells.keys()]) {
    const area: number[] = []
    const open = [first]
    for (let cell = open.pop(); cell !== undefined; cell = open.pop()) {
      const members = cells.get(cell)
      if (!members) continue
      cells.delete(cell)
      for (const i of members) area.push(i)
      for (const dy of [-1, 0, 1]) for (const dx of [-1, 0, 1]) open.push(cell + key(dx, dy))
    }
    if (area.length) areas.push(area)
  }
  return areas.sort((a, b) => b.length - a.length)
}
