/** Drag, wheel, pinch and tap on an element, for the map and the chart alike. Coordinates are relative to the element. */
export interface Gestures {
  pan(dx: number, dy: number): void
  zoom(factor: number, x: number, y: number): void
  tap?(x: number, y: number): void
  hover?(x: number, y: number): void
  leave?(): void
}

const SLOP = 4 // px a finger or a mouse may move in a tap
const LINE = 16 // px a wheel's line stands for

export function listen(element: HTMLElement, on: Gestures): () => void {
  const pointers = new Map<number, { x: number; y: number }>()
  let moved = 0

  const place = (event: MouseEvent) => {
    const box = element.getBoundingClientRect()
    return { x: event.clientX - box.left, y: event.clientY - box.top }
  }
  const down = (event: PointerEvent) => {
    if (event.button !== 0) return
    if (pointers.size === 0) moved = 0
    pointers.set(event.pointerId, place(event))
  }
  const move = (event: PointerEvent) => {
    const now = place(event)
    const before = pointers.get(event.pointerId)
    if (!before) {
      if (event.pointerType !== 'touch') on.hover?.(now.x, now.y)
      return
    }
    const others = [...pointers].filter(([id]) => id !== event.pointerId)
    const other = others[0]?.[1]
    moved += Math.hypot(now.x - before.x, now.y - before.y)
    if (moved < SLOP) return
    // Only now, so that a plain click still reaches what lies below.
    if (!element.hasPointerCapture(event.pointerId)) element.setPointerCapture(event.pointerId)
    pointers.set(event.pointerId, now)
    if (other) {
      const was = Math.hypot(before.x - other.x, before.y - other.y)
      const is = Math.hypot(now.x - other.x, now.y - other.y)
      if (was > 0 && is > 0) on.zoom(is / was, (now.x + other.x) / 2, (now.y + other.y) / 2)
      on.pan((now.x - before.x) / 2, (now.y - before.y) / 2)
    } else {
      on.pan(now.x - before.x, now.y - before.y)
    }
  }
  const up = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return
    if (event.type === 'pointerup' && moved < SLOP && pointers.size === 0) {
      const { x, y } = place(event)
      on.tap?.(x, y)
    }
  }
  const wheel = (event: WheelEvent) => {
    event.preventDefault()
    const { x, y } = place(event)
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : LINE)
    on.zoom(Math.exp(-Math.max(-200, Math.min(200, pixels)) * 0.002), x, y)
  }
  const leave = () => on.leave?.()

  element.addEventListener('pointerdown', down)
  element.addEventListener('pointermove', move)
  element.addEventListener('pointerup', up)
  element.addEventListener('pointercancel', up)
  element.addEventListener('pointerleave', leave)
  element.addEventListener('wheel', wheel, { passive: false })
  return () => {
    element.removeEventListener('pointerdown', down)
    element.removeEventListener('pointermove', move)
    element.removeEventListener('pointerup', up)
    element.removeEventListener('pointercancel', up)
    element.removeEventListener('pointerleave', leave)
    element.removeEventListener('wheel', wheel)
  }
}
