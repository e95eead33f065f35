// Which trainings the server has, and the panel of each on its node.

import { RUNNING, TrainingPanel } from "./training_panel.mjs"
import { useLocale } from "./texts.mjs"

const EVENT = "invert3d.training"
const NODE = "Invert3DTrainInversionToken"
const keyOf = ({ prompt_id: prompt, node_id: node }) => `${prompt} ${node}`
const NO_ID = "00000000-0000-0000-0000-000000000000" // of a graph that was never loaded or saved

/** Keeps the state of the server's trainings and shows each on the node that was queued. */
export class TrainingDesk {
  constructor(app, api) {
    this.app = app
    this.api = api
    this.states = new Map() // prompt and node → newest state, in the order of their starts
    this.panels = new WeakMap() // node → panel
  }

  /** Follow the server for as long as the page lives. */
  listen() {
    useLocale(this.app)
    this.api.addEventListener(EVENT, event => this.take(event.detail))
    this.api.addEventListener("reconnected", () => this.refresh())
  }

  /** Ask the server for everything: after a reload, another graph, or a lost connection. */
  async refresh() {
    for (const state of this.states.values()) this.show(state)
    let answer
    try {
      answer = await this.api.fetchApi("/invert3d/trainings")
      if (answer.ok) this.replace((await answer.json()).trainings)
    } catch {
      // The server is away; "reconnected" comes when it is back.
    }
  }

  /** The server's own list: what it no longer knows, such as what ran before it was restarted, runs no more. */
  replace(trainings) {
    const there = new Set(trainings.map(keyOf))
    for (const [key, state] of this.states) {
      if (there.has(key)) continue
      if (RUNNING.has(state.status)) this.show({ ...state, status: "cancelled" })
      this.states.delete(key)
    }
    for (const state of trainings) this.take(state)
  }

  take(state) {
    const key = keyOf(state)
    const known = this.states.get(key)
    if (known && known.version > state.version) return
    this.states.set(key, { ...known, ...state }) // an event leaves out a preview that has not changed
    this.show(this.states.get(key))
  }

  show(state) {
    const node = this.nodeOf(state)
    if (!node) return
    let panel = this.panels.get(node)
    if (!panel) {
      panel = new TrainingPanel(node, shown => this.stop(shown))
      this.panels.set(node, panel)
    }
    panel.show(state)
  }

  /** The node of the open graph that a training belongs to; ids of nodes inside subgraphs are paths such as 5:3. */
  nodeOf(state) {
    let graph = this.app.rootGraph ?? this.app.graph
    if (!graph || !state.workflow) return undefined
    const ids = new Set([graph.id ?? NO_ID, state.workflow])
    if (ids.size > 1 && !ids.has(NO_ID)) return undefined
    let node
    for (const id of state.node_id.split(":")) {
      node = graph?.getNodeById(id)
      graph = node?.subgraph
    }
    return node?.comfyClass === NODE ? node : undefined
  }

  /** End a training with what it has; null, or why that could not be. */
  async stop(state) {
    try {
      const body = JSON.stringify({ prompt_id: state.prompt_id, node_id: state.node_id })
      const answer = await this.api.fetchApi("/invert3d/trainings/stop", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
      })
      return answer.ok ? null : (await answer.json()).error
    } catch (error) {
      return String(error)
    }
  }
}
