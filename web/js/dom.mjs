// Making elements without a framework.

const SVG = "http://www.w3.org/2000/svg"

function made(created, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value)
  created.append(...children)
  return created
}

/** An HTML element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  return made(document.createElement(tag), attributes, children)
}

/** An SVG element with attributes and children. */
export function drawn(tag, attributes = {}, ...children) {
  return made(document.createElementNS(SVG, tag), attributes, children)
}

/** Change a text only when it differs, so that nothing is laid out, or read aloud, without need. */
export function write(target, content) {
  if (target.textContent !== content) target.textContent = content
}

/** Add an element to a node as its last widget, which neither workflows nor prompts see, and make room for it. */
export function addWidget(node, name, content, minHeight) {
  const widget = node.addDOMWidget(name, name, content, {
    serialize: false, // not in prompts
    hideOnZoom: false,
    getMinHeight: minHeight,
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false // not in workflows
  makeRoom(node)
  return widget
}

/** Let a node grow to what its widgets need; it never shrinks. */
export function makeRoom(node) {
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  node.setDirtyCanvas?.(true, true)
}
