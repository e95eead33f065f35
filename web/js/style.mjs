// The look of all of them, in the colors of the page's theme.

const STYLE = `
.invert3d {
  --i3-surface: var(--component-node-widget-background, var(--comfy-input-bg));
  --i3-text: var(--component-node-foreground, var(--input-text));
  --i3-quiet: var(--component-node-foreground-secondary, var(--descrip-text));
  --i3-line: color-mix(in srgb, var(--i3-text) 14%, transparent);
  --i3-accent: var(--primary-background, #3b8eea);
  --i3-second: #d9912b;
  box-sizing: border-box; width: 100%; height: 100%; padding: 10px;
  display: flex; flex-direction: column; gap: 8px; overflow: hidden;
  border-radius: 8px; background: var(--i3-surface); color: var(--i3-text);
  font: 12px/1.3 Inter, system-ui, sans-serif; font-variant-numeric: tabular-nums;
  user-select: none; text-align: left;
}
.invert3d * { box-sizing: border-box; }
.invert3d :focus-visible { outline: 2px solid var(--i3-accent); outline-offset: 2px; }
.invert3d-row { display: flex; align-items: center; gap: 8px; min-width: 0; flex: none; }
.invert3d-row > .invert3d-grow { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.invert3d-quiet { color: var(--i3-quiet); white-space: nowrap; }
.invert3d-status { font-weight: 600; }

.invert3d-bar { height: 3px; border-radius: 2px; background: var(--i3-line); overflow: hidden; flex: none; }
.invert3d-bar > div { height: 100%; width: 0; border-radius: 2px; background: var(--i3-accent); transition: width .3s; }
.invert3d[data-status=failed] .invert3d-bar > div,
.invert3d[data-status=cancelled] .invert3d-bar > div { background: var(--i3-quiet); }

.invert3d-chart { position: relative; flex: 1; min-height: 84px; margin-left: 38px; }
.invert3d-chart svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.invert3d-chart path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
.invert3d-chart .grid { stroke: var(--i3-line); stroke-width: 1; }
.invert3d-chart .raw { stroke: var(--i3-accent); stroke-width: 1; opacity: .28; }
.invert3d-chart .loss { stroke: var(--i3-accent); stroke-width: 1.75; }
.invert3d-chart .validation { stroke: var(--i3-second); stroke-width: 1.5; }
.invert3d-chart .points { stroke: var(--i3-second); stroke-width: 5; }
.invert3d-chart span { position: absolute; right: calc(100% + 6px); transform: translateY(-50%);
  font-size: 10px; color: var(--i3-quiet); }

.invert3d-foot { min-height: 34px; }
.invert3d-keys { display: flex; flex-direction: column; gap: 2px; }
.invert3d-key { display: inline-flex; align-items: center; gap: 5px; white-space: nowrap; }
.invert3d-key::before { content: ""; width: 10px; height: 2px; border-radius: 1px; background: var(--i3-accent); }
.invert3d-key.second::before { background: var(--i3-second); }
.invert3d-key b { font-weight: 600; }

.invert3d-preview { flex: none; margin: 0; }
.invert3d-preview img { display: block; width: 100%; max-height: 110px; object-fit: contain; border-radius: 5px; }
.invert3d [hidden] { display: none; }

.invert3d button { appearance: none; border: 0; border-radius: 6px; padding: 5px 10px; font: inherit; font-weight: 600;
  color: var(--i3-text); white-space: nowrap; cursor: pointer;
  background: color-mix(in srgb, var(--i3-text) 12%, var(--i3-surface)); }
.invert3d button:hover:enabled { background: color-mix(in srgb, var(--i3-text) 20%, var(--i3-surface)); }
.invert3d button:disabled { opacity: .5; cursor: default; }

.invert3d.note { padding: 6px 10px; user-select: text; overflow: auto; line-height: 16px; white-space: pre-wrap;
  overflow-wrap: anywhere; }

.invert3d.picker { flex-direction: row; align-items: stretch; gap: 12px; }
.invert3d-globe { flex: 1 1 50%; min-width: 0; border-radius: 6px; cursor: grab; touch-action: none; }
.invert3d-globe:active { cursor: grabbing; }
.invert3d-globe svg { display: block; width: 100%; height: 100%; overflow: visible; }
.invert3d-globe path, .invert3d-globe circle { vector-effect: non-scaling-stroke; }
.invert3d-globe .sphere { fill: color-mix(in srgb, var(--i3-text) 4%, transparent); stroke: var(--i3-line); }
.invert3d-globe .faint { fill: none; stroke: var(--i3-line); }
.invert3d-globe .ring { fill: none; stroke: var(--i3-accent); stroke-width: 1.25; }
.invert3d-globe .back { opacity: .35; }
.invert3d-globe .camera { fill: var(--i3-accent); }
.invert3d-globe .first { fill: var(--i3-second); stroke: var(--i3-surface); stroke-width: 2; }
.invert3d-globe .sight { fill: none; stroke: var(--i3-second); stroke-width: 1; stroke-dasharray: 2 3; }
.invert3d-globe .face { fill: color-mix(in srgb, var(--i3-text) 20%, var(--i3-surface)); stroke: var(--i3-surface);
  stroke-linejoin: round; }
.invert3d-globe .face.front { fill: color-mix(in srgb, var(--i3-text) 55%, var(--i3-surface)); }
.invert3d-globe .face.top { fill: color-mix(in srgb, var(--i3-text) 32%, var(--i3-surface)); }
.invert3d-values { flex: 1 1 50%; min-width: 0; max-width: 150px; display: flex; flex-direction: column;
  justify-content: center; gap: 7px; }
.invert3d-values > div { display: flex; justify-content: space-between; gap: 8px; white-space: nowrap; }
.invert3d-values b { font-weight: 600; }
.invert3d-values input { appearance: none; width: 100%; height: 14px; margin: 0; background: none; cursor: pointer; }
.invert3d-values input::-webkit-slider-runnable-track { height: 3px; border-radius: 2px; background: var(--i3-line); }
.invert3d-values input::-moz-range-track { height: 3px; border-radius: 2px; background: var(--i3-line); }
.invert3d-values input::-webkit-slider-thumb { appearance: none; width: 12px; height: 12px; margin-top: -4.5px;
  border-radius: 50%; background: var(--i3-accent); }
.invert3d-values input::-moz-range-thumb { width: 12px; height: 12px; border: 0; border-radius: 50%;
  background: var(--i3-accent); }
.invert3d-values > .invert3d-note { white-space: normal; color: var(--i3-quiet); }
.invert3d.picker[data-linked] .invert3d-globe { opacity: .4; cursor: default; pointer-events: none; }
`

/** Add it to the page, once. */
export function addStyle() {
  if (document.getElementById("invert3d-style")) return
  const style = document.createElement("style")
  style.id = "invert3d-style"
  style.textContent = STYLE
  document.head.append(style)
}
