// What a node said when it ran, on the node: also when its result was kept from an earlier run, which ComfyUI's own text
// of a running node does not survive.

import { addWidget, element, makeRoom, write } from "./dom.mjs"

const LINE = 16 // pixels
const LETTER = 7
const MOST_LINES = 12 // then it scrolls
const MARGIN = 40

/** Show the text of a node's results below its widgets, from the first result on. */
export function addNote(node) {
  const before = node.onExecuted
  let note = null
  node.onExecuted = function (output) {
    before?.call(this, output)
    const said = output?.text?.join("\n")
    if (!said) return
    note ??= made(node)
    write(note, said)
    makeRoom(node)
  }
}

function made(node) {
  const note = element("div", { role: "status" })
  const height = () => {
    const letters = Math.max(20, (node.size[0] - MARGIN) / LETTER)
    const lines = note.textContent.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0)
    return LINE * Math.min(MOST_LINES, lines) + 20
  }
  addWidget(node, "invert3d_note", element("section", { class: "invert3d note" }, note), height)
  return note
}
