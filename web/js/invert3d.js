// What the pack adds to ComfyUI's page: a live panel on trainings, a picker of orbits, a button to upload splats, and what
// nodes say of them. All are ordinary widgets, which the canvas and Nodes 2.0 show alike, and none is part of a saved
// workflow or of a prompt.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { addNote } from "./note.mjs"
import { addOrbitPicker } from "./orbit_picker.mjs"
import { addUpload, fillPrefix } from "./splat_files.mjs"
import { addStyle } from "./style.mjs"
import { useLocale } from "./texts.mjs"
import { TrainingDesk } from "./training_desk.mjs"

const PICKERS = {
  Invert3DRenderOrbitViews: { elevation: "elevations_deg", count: "count" },
  Invert3DMVDreamSampler: { elevation: "elevation_deg", count: "views" },
}

const NOTED = ["Invert3DLoadGaussianSplat", "Invert3DSaveGaussianSplat", "Invert3DOrientSplat"]

const desk = new TrainingDesk(app, api)

app.registerExtension({
  name: "Invert3D.TrainingDesk",
  setup() {
    addStyle()
    desk.listen()
  },
  nodeCreated(node) {
    const names = PICKERS[node.comfyClass]
    useLocale(app)
    if (names) addOrbitPicker(node, names)
    if (node.comfyClass === "Invert3DLoadGaussianSplat") addUpload(node, api, "file")
    if (node.comfyClass === "Invert3DSaveGaussianSplat") fillPrefix(node, app, "filename_prefix")
    if (NOTED.includes(node.comfyClass)) addNote(node)
  },
  afterConfigureGraph() {
    return desk.refresh()
  },
})
