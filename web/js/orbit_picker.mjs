// A picker of orbits: turns and lifts the ring of cameras around a little object, and writes the node's own widgets.

import { addWidget, drawn, element, write } from "./dom.mjs"
import { text } from "./texts.mjs"

const HEIGHT = 136
const RADIUS = 52 // of the sphere in the drawing
const CENTER = [80, 62]
const TILT = (22 * Math.PI) / 180 // the drawing is seen from this much above
const SHOWN = 24 // more cameras than these on a ring would be a line
const STEP = 5 // degrees of an arrow key
const SNAP = 15 // with Shift
const NEAREST = 0.1 // ends of the slider's logarithmic scale of radii
const FARTHEST = 100
const SLIDER = 100
const FOLLOW_MS = 200

const radians = degrees => (degrees * Math.PI) / 180
const clamp = (value, low, high) => Math.min(high, Math.max(low, value))
const wrapped = degrees => ((((degrees + 180) % 360) + 360) % 360) - 180
const number = value => String(Number(value.toFixed(2)))

const live = new Set()
let timer = 0

/** Widgets change by typing, scripts, undo and files, which no one event tells: look at those of living pickers. */
function follow(picker) {
  live.add(picker)
  timer ||= setInterval(() => {
    if (!document.hidden) for (const one of live) one.draw()
  }, FOLLOW_MS)
}

function unfollow(picker) {
  live.delete(picker)
  if (live.size) return
  clearInterval(timer)
  timer = 0
}

/** A point on the sphere at these angles as [x, y, depth]; depth > 0 is in front. */
function project(azimuth, elevation, size = RADIUS) {
  const [a, e] = [radians(azimuth), radians(elevation)]
  const [x, y, z] = [Math.sin(a) * Math.cos(e), Math.sin(e), Math.cos(a) * Math.cos(e)]
  return place(x * size, y * size, z * size)
}

function place(x, y, z) {
  const up = y * Math.cos(TILT) - z * Math.sin(TILT)
  return [CENTER[0] + x, CENTER[1] - up, z * Math.cos(TILT) + y * Math.sin(TILT)]
}

const polygon = points => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`

/** The parts of a parallel of the sphere that lie in front, or behind. */
function parallel(elevation, front) {
  let path = ""
  let pen = "M"
  for (let azimuth = -180; azimuth <= 180; azimuth += 4) {
    const [x, y, depth] = project(azimuth, elevation)
    const here = depth >= 0 === front
    if (here) path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`
    pen = here ? "L" : "M"
  }
  return path
}

/** The object in the middle: a block whose light side is its front. */
function block() {
  const [w, h, d] = [9, 11, 9]
  const corner = (x, y, z) => place(x * w, y * h, z * d)
  const face = (name, ...corners) =>
    drawn("path", { class: `face ${name}`, d: polygon(corners.map(at => corner(...at))) })
  return [
    face("front", [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]),
    face("top", [-1, 1, 1], [1, 1, 1], [1, 1, -1], [-1, 1, -1]),
  ]
}

/** Radii on the slider: 0 fits the object, the rest is logarithmic. */
const radiusAt = slider =>
  slider <= 0 ? 0 : Number((NEAREST * (FARTHEST / NEAREST) ** ((slider - 1) / (SLIDER - 1))).toPrecision(2))
const sliderAt = radius =>
  radius <= 0
    ? 0
    : clamp(1 + ((SLIDER - 1) * Math.log(radius / NEAREST)) / Math.log(FARTHEST / NEAREST), 1, SLIDER)

/** The ordinary widgets that a picker reads and writes. */
class OrbitWidgets {
  constructor(node, names) {
    this.node = node
    this.names = { azimuth: "azimuth_start_deg", span: "azimuth_span_deg", radius: "radius", ...names }
  }

  find(part) {
    return this.node.widgets?.find(widget => widget.name === this.names[part])
  }

  read(part, otherwise) {
    const value = Number(this.find(part)?.value ?? otherwise)
    return Number.isFinite(value) ? value : otherwise
  }

  /** Heights of the rings, [] when what stands there is no list of angles. */
  get elevations() {
    const parts = String(this.find("elevation")?.value ?? "").split(/[\s,]+/).filter(Boolean).map(Number)
    return parts.every(angle => Number.isFinite(angle) && Math.abs(angle) <= 90) ? parts : []
  }

  /** Whether a link decides instead of the widget. */
  linked(part) {
    return this.hasLink(input => input.widget?.name === this.names[part])
  }

  /** Whether the whole orbit comes over a link. */
  get replaced() {
    return this.hasLink(input => input.name === "cameras")
  }

  hasLink(matches) {
    return this.node.inputs?.some(input => input.link != null && matches(input)) ?? false
  }

  write(part, value) {
    const widget = this.find(part)
    if (!widget || this.linked(part) || widget.value === value) return
    widget.value = value
    widget.callback?.(value)
    this.node.setDirtyCanvas?.(true, true)
  }

  writeAzimuth(degrees) {
    this.write("azimuth", Number(number(wrapped(degrees))))
  }

  /** Lift or lower all rings so that the lowest is as far from where it was as all can go. */
  shiftElevations(from, degrees) {
    if (!from.length) return
    const shift = clamp(degrees, -90 - Math.min(...from), 90 - Math.max(...from))
    const moved = from.map(angle => Number(number(angle + shift)))
    this.write("elevation", this.names.elevation === "elevations_deg" ? moved.join(", ") : moved[0])
  }
}

class OrbitPicker {
  constructor(node, names) {
    this.widgets = new OrbitWidgets(node, names)
    this.rings = drawn("g")
    this.front = drawn("g")
    this.globe = element(
      "div",
      { class: "invert3d-globe", tabindex: "0", role: "slider", "aria-label": text("globe"), title: text("globeHint") },
      drawn(
        "svg",
        { viewBox: "22 4 116 116" },
        drawn("circle", { class: "sphere", cx: CENTER[0], cy: CENTER[1], r: RADIUS }),
        drawn("path", { class: "faint", d: parallel(0, true) + parallel(0, false) }),
        this.rings,
        ...block(),
        this.front,
      ),
    )
    this.globe.setAttribute("aria-valuemin", "-180")
    this.globe.setAttribute("aria-valuemax", "180")
    const [azimuth, elevation, radius] = ["azimuth", "elevation", "radius"].map(name => {
      const value = element("b")
      return { value, row: element("div", {}, element("span", { class: "invert3d-quiet" }, text(name)), value) }
    })
    this.values = { azimuth: azimuth.value, elevation: elevation.value, radius: radius.value }
    this.note = element("div", { class: "invert3d-note", hidden: "" }, text("linked"))
    const column = element("div", { class: "invert3d-values" }, azimuth.row, elevation.row)
    if (this.widgets.find("radius")) {
      this.slider = element("input", {
        type: "range", min: 0, max: SLIDER, step: 1, "aria-label": text("radius"), title: text("radiusHint"),
      })
      this.slider.addEventListener("input", () => {
        this.widgets.write("radius", radiusAt(Number(this.slider.value)))
        this.draw()
      })
      column.append(radius.row, this.slider)
    }
    column.append(this.note)
    this.element = element("section", { class: "invert3d picker" }, this.globe, column)
    this.globe.addEventListener("pointerdown", event => this.grab(event))
    this.globe.addEventListener("pointermove", event => this.drag(event))
    for (const end of ["pointerup", "pointercancel"]) this.globe.addEventListener(end, () => (this.held = null))
    this.globe.addEventListener("keydown", event => this.key(event))
  }

  grab(event) {
    if (event.button !== 0) return
    event.preventDefault() // no selection, no drag of the node
    event.stopPropagation()
    this.globe.focus({ preventScroll: true })
    this.globe.setPointerCapture(event.pointerId)
    // A drag over the drawn sphere's radius is a radian, at any zoom of the canvas.
    const scale = this.globe.getBoundingClientRect().height / 116
    this.held = {
      x: event.clientX,
      y: event.clientY,
      degreesPerPixel: 180 / Math.PI / (RADIUS * scale),
      azimuth: this.widgets.read("azimuth", 0),
      elevations: this.widgets.elevations,
    }
  }

  drag(event) {
    if (!this.held) return
    const { x, y, degreesPerPixel, azimuth, elevations } = this.held
    const grid = event.shiftKey ? SNAP : 1
    const snapped = degrees => Math.round(degrees / grid) * grid
    this.widgets.writeAzimuth(snapped(azimuth + (event.clientX - x) * degreesPerPixel))
    const target = snapped(elevations[0] + (y - event.clientY) * degreesPerPixel)
    if (elevations.length && event.clientY !== y) this.widgets.shiftElevations(elevations, target - elevations[0])
    this.draw()
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key]
    if (!way || this.widgets.replaced) return
    event.preventDefault()
    event.stopPropagation()
    const step = event.shiftKey ? SNAP : STEP
    if (way[0]) this.widgets.writeAzimuth(this.widgets.read("azimuth", 0) + way[0] * step)
    else this.widgets.shiftElevations(this.widgets.elevations, way[1] * step)
    this.draw()
  }

  /** Show what the widgets say, unless it is what is shown. */
  draw() {
    const { widgets } = this
    const azimuth = widgets.read("azimuth", 0)
    const elevations = widgets.elevations
    const [count, span, radius] = [widgets.read("count", 4), widgets.read("span", 360), widgets.read("radius", 0)]
    const { replaced } = widgets
    const key = JSON.stringify([azimuth, elevations, count, span, radius, replaced])
    if (key === this.drawnKey) return
    this.drawnKey = key
    const angle = elevations.map(value => `${number(value)}°`).join(", ") || "–"
    write(this.values.azimuth, `${number(azimuth)}°`)
    write(this.values.elevation, angle)
    write(this.values.radius, radius > 0 ? number(radius) : text("fit"))
    this.element.toggleAttribute("data-linked", replaced)
    this.note.hidden = !replaced
    this.globe.setAttribute("aria-disabled", String(replaced))
    this.globe.setAttribute("aria-valuenow", String(wrapped(azimuth)))
    this.globe.setAttribute("aria-valuetext", `${text("azimuth")} ${number(azimuth)}°, ${text("elevation")} ${angle}`)
    if (this.slider) {
      this.slider.disabled = replaced || widgets.linked("radius")
      this.slider.value = String(sliderAt(radius))
      this.slider.setAttribute("aria-valuetext", this.values.radius.textContent)
    }
    const behind = []
    const before = []
    for (const [ring, elevation] of elevations.entries()) {
      behind.push(drawn("path", { class: "ring back", d: parallel(elevation, false) }))
      before.push(drawn("path", { class: "ring", d: parallel(elevation, true) }))
      const shown = Math.min(count, SHOWN)
      for (let i = shown - 1; i >= 0; i--) {
        const [x, y, depth] = project(azimuth + (span * i) / shown, elevation)
        const first = i === 0 && ring === 0
        const size = first ? 5.5 : 2.6
        const dot = drawn("circle", { class: first ? "first" : "camera", cx: x.toFixed(1), cy: y.toFixed(1), r: size })
        const side = depth < 0 ? behind : before
        const sight = `M${CENTER.join(" ")}L${x.toFixed(1)} ${y.toFixed(1)}`
        if (first) side.push(drawn("path", { class: "sight", d: sight }))
        else if (depth < 0) dot.classList.add("back")
        side.push(dot)
      }
    }
    this.rings.replaceChildren(...behind)
    this.front.replaceChildren(...before)
  }
}

/** Put a picker on a node; names: of its widgets for the height of the ring and the number of views. */
export function addOrbitPicker(node, names) {
  const picker = new OrbitPicker(node, names)
  addWidget(node, "invert3d_orbit", picker.element, () => HEIGHT)
  picker.draw()
  // Only of nodes in a graph: for each copy the page makes one that it never adds.
  if (node.graph) follow(picker)
  const added = node.onAdded
  node.onAdded = function (...values) {
    follow(picker)
    return added?.apply(this, values)
  }
  const removed = node.onRemoved
  node.onRemoved = function (...values) {
    unfollow(picker)
    return removed?.apply(this, values)
  }
}
