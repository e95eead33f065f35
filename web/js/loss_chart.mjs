// The curve of a training: each step's loss faintly, its running mean, and the validation with a dot for each.

import { drawn, element } from "./dom.mjs"
import { text } from "./texts.mjs"

const WIDTH = 1000 // of the drawing, which is stretched over whatever room there is
const HEIGHT = 100
const SMOOTHING = 0.06 // share of the curve over which the mean runs
const OUTLIERS = 0.06 // share of the losses that may lie outside

const digits = value => (value === undefined ? "–" : Number(value).toPrecision(3))

/** The running mean of [step, value] pairs, right from the first one on. */
function smoothed(pairs) {
  const keep = 1 - 1 / Math.max(4, SMOOTHING * pairs.length)
  let sum = 0
  let weight = 0
  return pairs.map(([step, value]) => {
    sum = keep * sum + value
    weight = keep * weight + 1
    return [step, sum / weight]
  })
}

/** Lowest and highest value to show: all that matters, and of the single losses all but a few. */
function range(raw, ...curves) {
  const sorted = raw.map(pair => pair[1]).sort((a, b) => a - b)
  const cut = Math.floor(OUTLIERS * sorted.length)
  const values = [...sorted.slice(cut, sorted.length - cut), ...curves.flat().map(pair => pair[1])]
  let low = Infinity
  let high = -Infinity
  for (const value of values) {
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  const margin = (high - low || Math.abs(high) || 1) * 0.08
  return [low - margin, high + margin]
}

/** Round numbers in a range, two to four of them. */
function ticks(low, high) {
  const rough = (high - low) / 3
  const unit = 10 ** Math.floor(Math.log10(rough))
  const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= rough)
  const found = []
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step)
  const places = Math.max(0, -Math.floor(Math.log10(step)))
  return found.map(value => [value, value.toFixed(places)])
}

/** A chart: its element, and show(state), which draws and returns the newest numbers as texts. */
export function lossChart() {
  const paths = {}
  for (const name of ["grid", "raw", "loss", "validation", "points"]) paths[name] = drawn("path", { class: name })
  const labels = element("div", { "aria-hidden": "true" })
  const svg = drawn(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...Object.values(paths),
  )
  const box = element("div", { class: "invert3d-chart", role: "img" }, svg, labels)

  function show({ loss, validation, step, total }) {
    const mean = smoothed(loss)
    const newest = { loss: digits(mean.at(-1)?.[1]), validation: digits(validation.at(-1)?.[1]) }
    box.setAttribute("aria-label", text("curve", { step, total, ...newest }))
    if (!loss.length && !validation.length) {
      paths.grid.setAttribute("d", [0.2, 0.5, 0.8].map(y => `M0 ${y * HEIGHT}H${WIDTH}`).join(""))
      return newest
    }
    const [low, high] = range(loss, mean, validation)
    const x = at => ((at / Math.max(1, step)) * WIDTH * 0.985).toFixed(1)
    const y = value => (((high - value) / (high - low)) * HEIGHT).toFixed(2)
    const line = pairs => pairs.map(([at, value], i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("")
    const marks = ticks(low, high)
    paths.grid.setAttribute("d", marks.map(([value]) => `M0 ${y(value)}H${WIDTH}`).join(""))
    paths.raw.setAttribute("d", line(loss))
    paths.loss.setAttribute("d", line(mean))
    paths.validation.setAttribute("d", line(validation))
    paths.points.setAttribute("d", validation.map(([at, value]) => `M${x(at)} ${y(value)}h0.01`).join(""))
    labels.replaceChildren(
      ...marks.map(([value, label]) => element("span", { style: `top: ${y(value)}%` }, label)),
    )
    return newest
  }

  return { element: box, show }
}
