// The page: its controls, what it remembers, and the state of the server.

import * as api from "./api.js";
import {Conversation} from "./conversation.js";
import {modelStates, parseMetrics, showStates} from "./state.js";

const $ = (id) => document.getElementById(id);
const kBusyPollMs = 1000;
const kIdlePollMs = 4000;

const conversation = new Conversation($("turns"), $("conversation"));

// Settings outlive the page, a key only its tab.
const stored = (() => {
  try {
    return JSON.parse(localStorage.getItem("nibble") || "{}");
  } catch {
    return {};
  }
})();
function remember(name, value) {
  stored[name] = value;
  localStorage.setItem("nibble", JSON.stringify(stored));
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showTheme(theme) {
  if (theme === "auto") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = theme;
  }
}

function chosenModels() {
  const models = [$("model").value];
  if ($("compare").checked && !$("compare-row").hidden) models.push($("other").value);
  return models.filter((model, i) => model && models.indexOf(model) === i);
}

function chosenSettings() {
  const parameters = {};
  for (const input of document.querySelectorAll("[data-parameter]")) {
    if (input.value !== "") parameters[input.dataset.parameter] = input.valueAsNumber;
  }
  if ($("stop-text").value) parameters.stop = [$("stop-text").value];
  return {parameters, system: $("system").value.trim()};
}

function showControls() {
  const running = conversation.running;
  $("send").disabled = running || $("model").options.length === 0;
  $("stop").disabled = !running;
  $("regenerate").disabled = running || conversation.turns.length === 0;
  $("clear").disabled = conversation.turns.length === 0;
  $("empty").hidden = conversation.turns.length > 0;
}

// Runs what asks the models, and says to those who cannot see it how it went.
async function ask(question) {
  const models = chosenModels();
  const answered = question(models, chosenSettings());
  showControls();
  $("announcer").textContent = models.length > 1 ? "The models answer." : "The model answers.";
  const complete = await answered;
  $("announcer").textContent =
      complete === models.length ? "The answer is complete." : "The answer ended early.";
  showControls();
}

function send() {
  const message = $("message").value.trim();
  if (!message || $("send").disabled) return;
  const wrong = document.querySelector("#settings :invalid");
  if (wrong) {
    $("settings").open = true;
    wrong.reportValidity();
    return;
  }
  $("message").value = "";
  ask((models, settings) => conversation.say(message, models, settings));
}

function fillChooser(select, names, wanted) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(wanted)) select.value = wanted;
}

function showComparison() {
  $("other").hidden = !$("compare").checked || $("compare-row").hidden;
}

async function loadModels() {
  const names = await api.modelNames();
  fillChooser($("model"), names, $("model").value || stored.model);
  fillChooser($("other"), names, $("other").value || names.find((n) => n !== $("model").value));
  $("compare-row").hidden = names.length < 2;
  showComparison();
}

// True where the server answers requests; the notice says why not.
async function connect() {
  try {
    await loadModels();
    notice("");
    return true;
  } catch (error) {
    if (error.status === 401) {
      $("settings").open = true;
      notice("This server wants an API key: enter it in the settings.");
    } else if (error.status === 503) {
      notice(`${error.message} …`);
    } else {
      notice(`The server does not answer: ${error.message}`);
    }
    return false;
  } finally {
    showControls();
  }
}

let connected = false;
let last = {at: 0, tokens: new Map()};

async function refresh() {
  if (!connected) connected = await connect();
  if (!connected) {
    $("server-state").textContent = "no connection";
    return;
  }
  try {
    const states = modelStates(parseMetrics(await api.metricsText()));
    const now = performance.now();
    const rates = new Map();
    for (const [model, state] of states) {
      const before = last.tokens.get(model);
      if (before !== undefined) {
        rates.set(model, (state.tokens - before) / ((now - last.at) / 1000));
      }
    }
    last = {at: now, tokens: new Map([...states].map(([m, state]) => [m, state.tokens]))};
    $("server-state").textContent = "";
    showStates($("state"), states, rates);
  } catch {
    connected = false;
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, conversation.running || !connected ? kBusyPollMs : kIdlePollMs);
}

function selectTab(name) {
  for (const tab of ["chat", "report"]) {
    const selected = tab === name;
    $(tab).hidden = !selected;
    $(`${tab}-tab`).setAttribute("aria-selected", selected);
    $(`${tab}-tab`).tabIndex = selected ? 0 : -1;
  }
  if (name === "report") showReport();
}

// The request brings the key; its answer a cookie, with which the frame may load the report.
async function showReport() {
  if ($("report-frame").src) return;
  try {
    await api.openReport();
    $("report-frame").src = "report/";
    $("report-notice").textContent = "";
  } catch (error) {
    $("report-notice").textContent = `The report cannot be shown: ${error.message}`;
  }
}

function setUpSettings() {
  $("theme").value = stored.theme || "auto";
  $("theme").addEventListener("change", () => {
    showTheme($("theme").value);
    remember("theme", $("theme").value);
  });
  for (const input of document.querySelectorAll("[data-setting]")) {
    input.value = stored[input.id] ?? "";
    input.addEventListener("change", () => remember(input.id, input.value));
  }
  $("key").value = sessionStorage.getItem("nibble-key") || "";
  api.setKey($("key").value);
  $("key").addEventListener("change", () => {
    sessionStorage.setItem("nibble-key", $("key").value);
    api.setKey($("key").value);
    connected = false;
    refresh();
  });
  $("model").addEventListener("change", () => remember("model", $("model").value));
  $("compare").addEventListener("change", showComparison);
  if (matchMedia("(max-width: 760px)").matches) {
    $("settings").open = false;
    $("server").open = false;
  }
}

function setUpControls() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") conversation.stop();
  });
  $("stop").addEventListener("click", () => conversation.stop());
  $("regenerate").addEventListener("click", () =>
      ask((models, settings) => conversation.regenerate(models, settings)));
  $("clear").addEventListener("click", () => {
    conversation.clear();
    showControls();
    $("message").focus();
  });
  for (const tab of ["chat", "report"]) {
    $(`${tab}-tab`).addEventListener("click", () => selectTab(tab));
  }
  $("tabs").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = $("chat").hidden ? "chat" : "report";
    if ($(`${other}-tab`).hidden) return;
    selectTab(other);
    $(`${other}-tab`).focus();
  });
}

showTheme(stored.theme || "auto");
setUpSettings();
setUpControls();
showControls();
api.pageSettings().then((settings) => {
  $("report-tab").hidden = !settings.report;
  $("key-row").hidden = !settings.key;
}).catch(() => {});
poll();
