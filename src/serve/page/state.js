// How the server stands, from its metrics: text exposition format of Prometheus.

// [{name, labels: {}, value}]
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([\w:]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    samples.push({name: match[1], labels, value: Number(match[3])});
  }
  return samples;
}

export function formatBytes(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    ++unit;
  }
  return `${bytes >= 100 || unit === 0 ? bytes.toFixed(0) : bytes.toPrecision(3)} ${units[unit]}`;
}

// By model: {running, waiting, kvShare, tokens, memory: {CLASS: bytes}}.
export function modelStates(samples) {
  const states = new Map();
  const fields = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kvShare",
    "vllm:generation_tokens_total": "tokens",
  };
  for (const {name, labels, value} of samples) {
    const isMemory = name === "nibble:memory_bytes";
    if (!(name in fields) && !isMemory) continue;
    const model = labels.model_name || "";
    if (!states.has(model)) states.set(model, {memory: {}});
    if (isMemory) {
      states.get(model).memory[labels.class] = value;
    } else {
      states.get(model)[fields[name]] = value;
    }
  }
  return states;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Shows the states inside an element, each model's in a block of its own that stays from call to
// call. `rates` are tokens per second by model.
export function showStates(container, states, rates) {
  for (const block of [...container.children]) {
    if (!states.has(block.dataset.model)) block.remove();
  }
  for (const [model, state] of states) {
    let block = [...container.children].find((child) => child.dataset.model === model);
    if (!block) {
      block = element("div", undefined, "model-state");
      block.dataset.model = model;
      const meter = element("meter");
      meter.setAttribute("aria-label", `KV cache of ${model}`);
      block.append(element("h3", model), element("dl"), meter, element("p"));
      container.append(block);
    }
    const memory = Object.entries(state.memory);
    const total = memory.reduce((sum, [, bytes]) => sum + bytes, 0);
    const rows = [
      ["tokens/s", (rates.get(model) || 0).toFixed(1)],
      ["running, waiting", `${state.running ?? 0}, ${state.waiting ?? 0}`],
      ["memory", formatBytes(total)],
      ["KV cache in use", `${((state.kvShare || 0) * 100).toFixed(1)} %`],
    ];
    const list = block.querySelector("dl");
    const cells = rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]);
    list.replaceChildren(...cells);
    block.querySelector("meter").value = state.kvShare || 0;
    block.querySelector("p").textContent = memory.map(
        ([name, bytes]) => `${name.replaceAll("_", " ")} ${formatBytes(bytes)}`).join(", ");
  }
}
