// What files need in the page: a button that uploads every kind of splat, and dates in names of saved files.

import { makeRoom } from "./dom.mjs"
import { text } from "./texts.mjs"

/** A button that puts a file of this computer into the input folder and chooses it in the node's list. */
export function addUpload(node, api, name) {
  const [, options] = node.constructor.nodeData?.input?.required?.[name] ?? []
  const list = node.widgets?.find(widget => widget.name === name)
  if (!options?.invert3d_upload || !list) return
  const picker = document.createElement("input")
  picker.type = "file"
  picker.accept = options.invert3d_upload.join(",")
  picker.onchange = async () => {
    const [file] = picker.files
    picker.value = "" // so that the same file can be chosen again
    if (file) await upload(file)
  }
  const button = node.addWidget("button", "invert3d_upload", null, () => picker.click(), { serialize: false })
  button.serialize = false
  button.label = text("upload")
  makeRoom(node)

  async function upload(file) {
    button.label = text("uploading")
    try {
      const value = await sent(api, file, options.upload_subfolder)
      if (!list.options.values.includes(value)) list.options.values.push(value)
      list.value = value
      list.callback?.(value)
      button.label = text("upload")
    } catch (error) {
      button.label = text("uploadFailed", { reason: error.message })
    }
    node.setDirtyCanvas?.(true, true)
  }
}

/** Send a file to the host; its name in the list of the input folder. */
async function sent(api, file, subfolder) {
  const body = new FormData()
  body.append("image", file)
  body.append("type", "input")
  body.append("subfolder", subfolder)
  const answer = await api.fetchApi("/upload/image", { method: "POST", body })
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`)
  const saved = await answer.json()
  return saved.subfolder ? `${saved.subfolder}/${saved.name}` : saved.name
}

/** Fill %date:yyyy-MM-dd% and %Node.widget% in a file name when it is queued, as the page does for its own nodes. */
export function fillPrefix(node, app, name) {
  const widget = node.widgets?.find(one => one.name === name)
  const fill = window.comfyAPI?.utils?.applyTextReplacements
  if (widget && fill) widget.serializeValue = () => fill(app, widget.value)
}
