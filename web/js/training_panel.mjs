// The panel on a training's node: status, curve, preview and the button that ends it early.

import { addWidget, element, makeRoom, write } from "./dom.mjs"
import { lossChart } from "./loss_chart.mjs"
import { duration, text } from "./texts.mjs"

const HEIGHT = 204
const PREVIEW_HEIGHT = 86
export const RUNNING = new Set(["preparing", "training", "stopping"])

/** One node's panel; stop(state) asks the server to end the training and gives null or a reason. */
export class TrainingPanel {
  constructor(node, stop) {
    this.node = node
    this.status = element("div", { class: "invert3d-grow invert3d-status", role: "status" })
    this.time = element("div", { class: "invert3d-quiet" })
    this.filled = element("div")
    this.chart = lossChart()
    this.image = element("img", { alt: "" })
    this.preview = element("figure", { class: "invert3d-preview", hidden: "" }, this.image)
    this.loss = element("b")
    this.validation = element("b")
    this.lossKey = element("span", { class: "invert3d-key" }, text("loss"), this.loss)
    this.validationKey = element("span", { class: "invert3d-key second" }, text("validation"), this.validation)
    this.button = element("button", { type: "button", title: text("stopHint") }, text("stop"))
    this.button.addEventListener("click", () => this.stop(stop))
    this.element = element(
      "section",
      { class: "invert3d training" },
      element("div", { class: "invert3d-row" }, this.status, this.time),
      element("div", { class: "invert3d-bar" }, this.filled),
      this.chart.element,
      this.preview,
      element(
        "div",
        { class: "invert3d-row invert3d-foot" },
        element("div", { class: "invert3d-grow invert3d-keys" }, this.lossKey, this.validationKey),
        this.button,
      ),
    )
    addWidget(node, "invert3d_training", this.element, () => HEIGHT + (this.preview.hidden ? 0 : PREVIEW_HEIGHT))
  }

  show(state) {
    this.state = state
    const { step, total, status, name } = state
    this.element.dataset.status = status
    this.element.setAttribute("aria-label", text("panel", { name }))
    write(this.status, text(status, { step, total }))
    write(this.time, this.aside(state))
    this.filled.style.width = `${status === "done" || status === "kept" ? 100 : (100 * step) / total}%`
    const shown = this.chart.show(state)
    write(this.loss, shown.loss)
    write(this.validation, shown.validation)
    this.validationKey.hidden = !state.validation.length
    this.button.hidden = !RUNNING.has(status) || status === "preparing" // there is nothing to keep yet
    this.button.disabled = status === "stopping"
    this.showPreview(state)
  }

  /** What stands at the right of the status: the time left, then which step's vectors were taken, or what to do. */
  aside({ status, seconds_left: seconds, best_step: best }) {
    if (status === "training" && seconds !== null) return text("left", { time: duration(seconds) })
    if (status === "cancelled") return text("again")
    return best === null ? "" : text("best", { step: best })
  }

  showPreview({ preview, name }) {
    if (!preview) {
      this.preview.hidden = true // an earlier training's
      this.image.removeAttribute("src")
      return
    }
    if (this.image.src === preview.url) return
    this.image.src = preview.url
    this.image.alt = this.image.title = text("preview", { name, step: preview.step })
    if (!this.preview.hidden) return
    this.preview.hidden = false
    makeRoom(this.node)
  }

  async stop(stop) {
    this.button.disabled = true
    const refused = await stop(this.state)
    if (refused === null) return
    write(this.status, text("stopFailed", { reason: refused }))
    this.button.disabled = false
  }
}
