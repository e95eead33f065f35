// What the pack adds to ComfyUI's page: a live panel on trainings, and a picker of orbits. Both are ordinary DOM
// widgets, which the canvas and Nodes 2.0 show alike, and neither is part of a saved workflow or of a prompt.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { addOrbitPicker } from "./orbit_picker.mjs"
import { addStyle } from "./style.mjs"
import { useLocale } from "./texts.mjs"
import { TrainingDesk } from "./training_desk.mjs"

const PICKERS = {
  Invert3DRenderOrbitViews: { elevation: "elevations_deg", count: "count" },
  Invert3DMVDreamSampler: { elevation: "elevation_deg", count: "views" },
}

const desk = new TrainingDesk(app, api)

app.registerExtension({
  name: "Invert3D.TrainingDesk",
  setup() {
    addStyle()
    desk.listen()
  },
  nodeCreated(node) {
    const names = PICKERS[node.comfyClass]
    if (!names) return
    useLocale(app)
    addOrbitPicker(node, names)
  },
  afterConfigureGraph() {
    return desk.refresh()
  },
})
