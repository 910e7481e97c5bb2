/** Where the map looks: a local equirectangular projection about the place last fitted to. */

const METRES_PER_DEGREE = (Math.PI / 180) * 6_371_008.8
const MIN_SCALE = 5e-6 // px per metre: the whole Earth in 200 px
const MAX_SCALE = 20

export interface View {
  lon: number // the middle of the picture
  lat: number
  cos: number // of the latitude fitted to: how much shorter a degree of longitude is there
  scale: number // px per metre
  width: number // px
  height: number
}

export interface Box {
  west: number
  south: number
  east: number
  north: number
}

export const start: View = { lon: 0, lat: 0, cos: 1, scale: 1, width: 0, height: 0 }

export const xOf = (view: View, lon: number) =>
  view.width / 2 + (lon - view.lon) * view.cos * METRES_PER_DEGREE * view.scale
export const yOf = (view: View, lat: number) => view.height / 2 - (lat - view.lat) * METRES_PER_DEGREE * view.scale
export const lonAt = (view: View, x: number) =>
  view.lon + (x - view.width / 2) / (view.cos * METRES_PER_DEGREE * view.scale)
export const latAt = (view: View, y: number) => view.lat - (y - view.height / 2) / (METRES_PER_DEGREE * view.scale)

const within = (value: number, low: number, high: number) => Math.max(low, Math.min(high, value))

export function panned(view: View, dx: number, dy: number): View {
  const x = view.width / 2 - dx
  const y = view.height / 2 - dy
  return { ...view, lon: within(lonAt(view, x), -180, 180), lat: within(latAt(view, y), -90, 90) }
}

/** Zoomed so that what is at x, y stays there. */
export function zoomed(view: View, factor: number, x: number, y: number): View {
  const scale = within(view.scale * factor, MIN_SCALE, MAX_SCALE)
  const next = { ...view, scale }
  return panned(next, x - xOf(next, lonAt(view, x)), y - yOf(next, latAt(view, y)))
}

export function fitted(view: View, box: Box): View {
  const lon = (box.west + box.east) / 2
  const lat = (box.south + box.north) / 2
  const cos = Math.max(0.01, Math.cos((lat * Math.PI) / 180))
  const margin = Math.min(72, view.width / 6, view.height / 6) // for the buttons on the right, too
  // A single place is shown with 500 m around it.
  const wide = Math.max((box.east - box.west) * cos * METRES_PER_DEGREE, 1000)
  const high = Math.max((box.north - box.south) * METRES_PER_DEGREE, 1000)
  const scale = Math.min((view.width - 2 * margin) / wide, (view.height - 2 * margin) / high)
  return { ...view, lon, lat, cos, scale: within(scale, MIN_SCALE, MAX_SCALE) }
}

/** The largest of 1, 2, 5 × 10ⁿ that is not above `most`. */
export function rounded(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most))
  const first = most / power
  return (first >= 5 ? 5 : first >= 2 ? 2 : 1) * power
}
