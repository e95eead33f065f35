// The words of the panel, the picker and the upload button, and the language that the page is set to.

const TEXTS = {
  en: {
    preparing: "Preparing the views",
    training: "Step {step} of {total}",
    stopping: "Stopping at step {step}",
    done: "Trained, {step} steps",
    kept: "Kept at step {step}",
    cancelled: "Cancelled at step {step}",
    failed: "Failed at step {step}",
    left: "{time} left",
    best: "best at {step}",
    again: "queue to go on",
    loss: "loss",
    validation: "validation",
    preview: "<{name}> at step {step}",
    stop: "Stop and keep",
    stopHint: "End the training now with the best vectors so far. The graph goes on with this token.",
    stopFailed: "Could not stop: {reason}",
    curve: "Loss curve, step {step} of {total}: loss {loss}, validation {validation}",
    panel: "Training of <{name}>",
    hours: "{h} h {m} min",
    minutes: "{m} min",
    seconds: "{s} s",
    azimuth: "azimuth",
    elevation: "elevation",
    radius: "radius",
    fit: "fit",
    globe: "Azimuth and elevation of the first view",
    globeHint: "Drag to turn the views. Arrow keys work too; with Shift in steps of 15°.",
    radiusHint: "Distance of the cameras; fully left fits the object into the picture.",
    linked: "set by the cameras input",
    upload: "choose a file to upload",
    uploading: "uploading …",
    uploadFailed: "upload failed: {reason}",
  },
  zh: {
    preparing: "正在准备视图",
    training: "第 {step} 步，共 {total} 步",
    stopping: "将在第 {step} 步停止",
    done: "训练完成，共 {step} 步",
    kept: "已保留，第 {step} 步",
    cancelled: "已在第 {step} 步取消",
    failed: "在第 {step} 步失败",
    left: "剩余 {time}",
    best: "最佳：第 {step} 步",
    again: "再次排队即可继续",
    loss: "损失",
    validation: "验证",
    preview: "第 {step} 步的 <{name}>",
    stop: "停止并保留",
    stopHint: "立即结束训练并保留目前最好的向量，工作流会用这个词元继续执行。",
    stopFailed: "无法停止：{reason}",
    curve: "损失曲线，第 {step} 步，共 {total} 步：损失 {loss}，验证 {validation}",
    panel: "<{name}> 的训练",
    hours: "{h} 小时 {m} 分",
    minutes: "{m} 分钟",
    seconds: "{s} 秒",
    azimuth: "方位角",
    elevation: "仰角",
    radius: "半径",
    fit: "适应",
    globe: "第一个视图的方位角和仰角",
    globeHint: "拖动以旋转视图，也可使用方向键；按住 Shift 时每次 15°。",
    radiusHint: "相机的距离；最左端使物体充满画面。",
    linked: "由 cameras 输入决定",
    upload: "选择要上传的文件",
    uploading: "正在上传……",
    uploadFailed: "上传失败：{reason}",
  },
}

let words = TEXTS.en

/** Take the language from the page's settings. */
export function useLocale(app) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language
  words = String(locale).startsWith("zh") ? TEXTS.zh : TEXTS.en
}

/** A text of the table with its {places} filled in. */
export function text(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name])
}

/** A duration as a person says it: in one or two units. */
export function duration(seconds) {
  if (seconds < 60) return text("seconds", { s: Math.max(1, Math.round(seconds)) })
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return text("minutes", { m: minutes })
  return text("hours", { h: Math.floor(minutes / 60), m: minutes % 60 })
}
