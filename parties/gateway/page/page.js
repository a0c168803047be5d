"use strict";
// The page of the gateway. It builds the document from text nodes alone, so that no text is ever read as HTML.

const $ = (id) => document.getElementById(id);
const KEY = "page-secret", POLL_MS = 500, N_HEX = 96, SVG = "http://www.w3.org/2000/svg";
let model = null, asking = null, polling = null, lastFile = null;
const rows = new Map(); // the uploads on the page, by id

// The fragment of an address is sent to no server. Browsers write it down, so it holds no more than a code for one use.
let code = "";
if (location.hash.startsWith("#code=")) {
  code = location.hash.slice("#code=".length);
  history.replaceState(null, "", location.pathname);
}
// This page has no service worker. One that is there is left by somebody else who has listened at this port.
navigator.serviceWorker?.getRegistrations().then((found) => found.forEach((each) => each.unregister()));

class Refused extends Error {
  constructor(status, told) { super(told.error || "the gateway does not answer"); this.status = status; this.told = told; }
}

const hex = (values) => [...values].map((value) => value.toString(16).padStart(2, "0")).join("");
const unhex = (text) => Uint8Array.from(text.match(/../g) || [], (digits) => parseInt(digits, 16));
const noAnswer = () => new Refused(0, { error: "the gateway does not answer", fix: "start it again, and open the address that it prints" });

// While no gateway runs, another user of this machine may listen at its port. So whoever answers must prove that they
// have the same secret before it is sent to them, or a text.
async function checkGateway(secret, why) {
  const challenge = hex(crypto.getRandomValues(new Uint8Array(32)));
  const told = await fetch(`/health?challenge=${challenge}`).then((reply) => reply.json()).catch(() => null);
  if (!told) throw noAnswer();
  const encoded = new TextEncoder(), algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", encoded.encode(secret), algorithm, false, ["verify"]);
  for (const proof of [told.proof].concat(told.page_proofs)) {
    if (await crypto.subtle.verify("HMAC", key, unhex(String(proof)), encoded.encode(challenge))) return;
  }
  lock(why);
  throw new Refused(401, { error: "the token is wrong, or another program answers here" });
}

// Exchange the code of the address, or the token, for the page's secret. A tab keeps that when it is loaded again.
async function enter(given, why) {
  await checkGateway(given, why);
  const headers = { Authorization: `Bearer ${given}` };
  const reply = await fetch("/page-secret", { method: "POST", headers }).catch(() => { throw noAnswer(); });
  const told = await reply.json().catch(() => ({}));
  if (reply.status === 401) lock(why);
  if (!reply.ok) throw new Refused(reply.status, told);
  sessionStorage.setItem(KEY, told.secret);
}

async function call(method, path, body, options = {}) {
  const secret = sessionStorage.getItem(KEY);
  if (!secret) {
    lock();
    throw new Refused(401, { error: "the token is missing" });
  }
  await checkGateway(secret, ENDED);
  const headers = { Authorization: `Bearer ${secret}` };
  let reply;
  try {
    reply = await fetch(path, { method, headers, body, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw noAnswer();
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => ({}));
    if (reply.status === 401) lock(ENDED);
    throw new Refused(reply.status, told);
  }
  return reply;
}

function show(id, shown) { $(id).hidden = !shown; }

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tell(id, error) {
  const box = $(id);
  box.replaceChildren();
  if (error) {
    box.append(element("p", error.message));
    if (error.told && error.told.fix) box.append(element("p", `What to do: ${error.told.fix}.`));
  }
  box.hidden = !error;
}

const number = new Intl.NumberFormat("en");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} s`;
function bytes(value) {
  if (value < 1024) return `${value} B`;
  return value < 1 << 20 ? `${(value / 1024).toFixed(0)} KiB` : `${(value / 2 ** 20).toFixed(1)} MiB`;
}

// The token, and what is served.

const HOW = "Open the address that mpcformer gateway printed when it started, or paste the token from its file.";
const MISSING = ["The token is missing", HOW];
const WRONG = ["The token is wrong", "The gateway here has another one, or another program listens here in its place. "
  + "The token was not sent."];
const USED = ["This address was used already", "Each opens the page once. Paste the token from the gateway's file, or start "
  + "the gateway again."];
const ENDED = ["The gateway of this page has ended", "Another one runs here now, or another program listens in its place. "
  + `Nothing was sent to it. ${HOW}`];

function lock(why = MISSING) {
  show("open", false);
  show("locked", true);
  [$("locked-title").textContent, $("locked-why").textContent] = why;
  sessionStorage.removeItem(KEY);
  $("token").focus();
}

async function unlock(token) {
  const given = token || code;
  code = "";
  if (given) await enter(given, token ? WRONG : USED);
  const models = await (await call("GET", "/models")).json();
  show("locked", false);
  show("open", true);
  $("models").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $("models").onchange = () => choose(models[$("models").selectedIndex]);
  show("choice", models.length > 1);
  choose(models[0]);
  $("text").focus();
  await refresh();
}

function choose(found) {
  model = found;
  // What is shown was another model's.
  ["answer", "seen"].forEach((id) => show(id, false));
  tell("problem", null);
  $("status").textContent = "";
  $("name").textContent = model.name;
  show("local", model.local);
  const cut = model.max_length ? `cut to ${model.max_length} tokens` : `of up to ${model.positions} tokens`;
  const what = model.task === "text-classification" ? `tells ${model.labels.join(" or ")}` : model.task;
  const { dealer, "model-owner": owner } = model.parties;
  const others = model.local ? "" : `; model owner ${owner}, dealer ${dealer}`;
  $("model").textContent = `${model.name}: ${what}, texts ${cut}; weights ${model.sha256.slice(0, 12)}…${others}`;
  show("model", true);
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  $("token").value = "";
  begin(token);
});

function begin(token) {
  unlock(token).catch((error) => { if (error.status !== 401) tell("problem", error), show("open", true); });
}

// One text.

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("cancel").addEventListener("click", () => asking && asking.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && asking) asking.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#ask")) {
    event.preventDefault();
    if (!asking) $("ask").requestSubmit();
  }
});

async function ask() {
  if (asking) return;
  const text = $("text").value, second = $("pair").open ? $("second").value : "";
  const inputs = second ? { text, text_pair: second } : text;
  asking = new AbortController();
  $("send").disabled = $("models").disabled = true;
  $("cancel").disabled = false;
  tell("problem", null);
  const began = performance.now();
  const clock = setInterval(() => {
    // Only the eye follows the clock: a screen reader would read it aloud every time.
    $("send").textContent = `Asking, ${((performance.now() - began) / 1000).toFixed(0)} s`;
  }, 1000);
  $("status").textContent = "Asking …";
  try {
    const body = JSON.stringify({ inputs, parameters: { details: true, seen: true } });
    const reply = await call("POST", `/models/${model.name}`, body, { signal: asking.signal });
    const told = await reply.json();
    showAnswer(told.answers[0], told.details[0]);
    showSeen(second ? `${text}\n${second}` : text, told.details[0]);
  } catch (error) {
    if (error.name === "AbortError") {
      $("status").textContent = "Stopped. A batch that is being computed ends first.";
    } else {
      $("status").textContent = "";
      tell("problem", error);
    }
  } finally {
    clearInterval(clock);
    asking = null;
    $("send").disabled = $("models").disabled = false;
    $("send").textContent = "Ask";
    $("cancel").disabled = true;
  }
}

function showAnswer(answer, detail) {
  const refused = Array.isArray(answer) ? answer[0] && answer[0].refused && answer[0] : answer.refused && answer;
  $("bars").replaceChildren();
  show("vector", false);
  show("answer", !refused || detail.seconds !== undefined);
  show("answer-title", !refused);
  if (refused) {
    tell("problem", { message: `This text is refused: ${refused.reason}.`, told: refused });
    $("status").textContent = "Refused: there is no answer to this text.";
  } else if (model.task === "feature-extraction") {
    const first = answer.slice(0, 12).map((value) => value.toFixed(4)).join("  ");
    $("vector").textContent = `${answer.length} numbers: ${first} …`;
    show("vector", true);
    $("status").textContent = `Answered with ${answer.length} numbers.`;
  } else if (model.task === "token-classification") {
    for (const token of answer) bar(`${token.index}: ${token.entity}`, token.score, false);
    $("status").textContent = `Answered for ${answer.length} tokens.`;
  } else if (answer.length === 1) {
    $("bars").append(group([element("dt", answer[0].label), element("dd", answer[0].score.toFixed(3), "value")], true));
    $("status").textContent = `Answer: ${answer[0].label} ${answer[0].score.toFixed(3)}.`;
  } else {
    answer.forEach((each, index) => bar(each.label, each.score, index === 0));
    $("status").textContent = `Answer: ${answer[0].label}, ${percent(answer[0].score)}.`;
  }
  figures(detail);
}

function group(cells, best) {
  const made = element("div", undefined, best ? "best" : "");
  made.append(...cells);
  return made;
}

function bar(label, score, best) {
  const track = element("div", undefined, "track"), fill = element("div", undefined, "fill");
  const cell = element("dd", undefined, "track-cell");
  cell.setAttribute("aria-hidden", "true");
  track.append(fill);
  cell.append(track);
  $("bars").append(group([element("dt", label), cell, element("dd", percent(score), "value")], best));
  requestAnimationFrame(() => { fill.style.width = `${100 * score}%`; });
}

function figures(detail) {
  const shown = [];
  if (detail.seconds !== undefined) {
    const dealing = detail.seconds - detail.online_seconds;
    const beside = detail.dealt_ahead ? "dealt ahead" : `with ${seconds(dealing)} for dealing`;
    shown.push(["time", seconds(detail.seconds), beside]);
    shown.push(["rounds", number.format(detail.rounds), "messages one after the other"]);
    shown.push(["bytes", bytes(detail.bytes), "online, both ways"]);
    shown.push(["batch", detail.batch.join(" × "), "texts × tokens, padded"]);
  }
  $("figures").replaceChildren(...shown.map(([name, value, beside]) => {
    const made = element("div"), cell = element("dd", value);
    cell.append(element("small", beside));
    made.append(element("dt", name), cell);
    return made;
  }));
  show("figures", shown.length > 0);
}

// What each party saw.

function spaced(hex) { return (hex.match(/../g) || []).join(" "); }

function chart(id, counts, caption) {
  const most = Math.max(1, ...counts), bars = [];
  counts.forEach((count, value) => {
    if (!count) return;
    const made = document.createElementNS(SVG, "rect"), height = (60 * count) / most;
    made.setAttribute("x", value);
    made.setAttribute("width", 1);
    made.setAttribute("y", 64 - height);
    made.setAttribute("height", height);
    bars.push(made);
  });
  $(`${id}-chart`).replaceChildren(...bars);
  $(`${id}-chart`).setAttribute("aria-label", `How often each of the 256 values of a byte comes. ${caption}`);
  $(`${id}-caption`).textContent = caption;
}

function showSeen(text, detail) {
  show("seen", Boolean(detail.seen));
  if (!detail.seen) return;
  const own = new TextEncoder().encode(text), counts = new Array(256).fill(0);
  own.forEach((value) => { counts[value] += 1; });
  $("you-text").textContent = text;
  $("you-hex").textContent = spaced(hex(own.slice(0, N_HEX))) + (own.length > N_HEX ? " …" : "");
  const used = counts.filter(Boolean).length;
  chart("you", counts, `${number.format(own.length)} bytes with ${used} of the 256 values a byte can have: language shows.`);
  const { first, histogram, counted } = detail.seen.model_owner, { correlations, listed } = detail.seen.dealer;
  $("owner-hex").textContent = `${spaced(first.slice(0, 2 * N_HEX))} …`;
  const least = Math.min(...histogram), most = Math.max(...histogram);
  chart("owner", histogram, `The first ${bytes(counted)}: each of the 256 values comes ${number.format(least)} to `
    + `${number.format(most)} times, as in noise. ${evenness(histogram, counted)}`);
  const when = detail.dealt_ahead ? "before the text was there" : "while you waited";
  $("dealer-count").textContent = `it dealt for ${number.format(correlations)} operations, ${when}`;
  const some = listed.slice(0, 14);
  const items = some.map(({ kind, shapes, count }) => {
    const sizes = shapes.map((shape) => shape.join("×")).join(", ");
    return element("li", `${kind.replaceAll("_", " ")} ${sizes}${count > 1 ? `, ${count} times` : ""}`);
  });
  const left = correlations - some.reduce((sum, each) => sum + each.count, 0);
  if (left > 0) items.push(element("li", `and ${number.format(left)} more`, "rest"));
  $("dealer-shapes").replaceChildren(...items);
}

function evenness(histogram, counted) {
  // Pearson's chi-squared with 255 degrees of freedom: for uniform bytes its mean is 255, its deviation 22.6.
  const expected = counted / 256;
  if (expected < 5) return "";
  const found = histogram.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  return `Chi-squared ${found.toFixed(0)}; uniform bytes give 255 ± 23.`;
}

// Files.

const drop = $("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); give(event.dataTransfer.files[0]); });
// A file that is dropped beside the field would otherwise be opened in the place of this page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
$("file").addEventListener("change", () => give($("file").files[0]));
$("give").addEventListener("submit", (event) => { event.preventDefault(); give(lastFile, $("column").value); });

async function give(file, column) {
  if (!file) return;
  lastFile = file;
  tell("file-problem", null);
  show("columns", false);
  $("file-status").textContent = `Giving ${file.name} to the gateway on this machine …`;
  try {
    const query = new URLSearchParams({ name: file.name, model: model.name });
    if (column) query.append("text_column", column);
    const reply = await call("POST", `/uploads?${query}`, file);
    const upload = await reply.json();
    $("file-status").textContent = `${upload.name}: ${number.format(upload.rows)} texts in column ${upload.columns.join(" and ")}.`;
    $("file").value = "";
    await refresh();
  } catch (error) {
    $("file-status").textContent = "";
    tell("file-problem", error);
    if (error.told && error.told.columns) {
      $("column").replaceChildren(...error.told.columns.map((name) => new Option(name, name)));
      show("columns", true);
      $("column").focus();
    }
  }
}

async function refresh() {
  clearTimeout(polling);
  let busy = false;
  try {
    const uploads = await (await call("GET", "/uploads")).json();
    const here = new Set(uploads.map((upload) => upload.id));
    for (const [id, row] of rows) if (!here.has(id)) row.remove(), rows.delete(id);
    uploads.forEach((upload, index) => {
      const row = rows.get(upload.id) || newRow(upload.id);
      if ($("uploads").children[index] !== row) $("uploads").insertBefore(row, $("uploads").children[index] || null);
      fill(row, upload);
      busy = busy || ["waiting", "working", "stopping"].includes(upload.state);
    });
    if (rows.lost) tell("file-problem", null), rows.lost = false;
  } catch (error) {
    if (error.status === 401) return;
    // The gateway may be started again: what it has answered is kept.
    rows.lost = true;
    tell("file-problem", error);
  }
  polling = setTimeout(refresh, busy || rows.lost ? POLL_MS : 10 * POLL_MS);
}

function newRow(id) {
  const row = $("upload").content.firstElementChild.cloneNode(true);
  rows.set(id, row);
  const act = (name, work) => row.querySelector(name).addEventListener("click", () => {
    tell("file-problem", null);
    work().then(refresh).catch((error) => tell("file-problem", error));
  });
  act(".do-stop", () => call("POST", `/uploads/${id}/stop`));
  act(".do-go-on", () => call("POST", `/uploads/${id}/go-on`));
  act(".do-remove", () => call("DELETE", `/uploads/${id}`));
  act(".do-download", () => download(id));
  return row;
}

async function download(id) {
  const reply = await call("GET", `/uploads/${id}/answers`);
  const named = /filename\*=UTF-8''(.*)$/.exec(reply.headers.get("Content-Disposition"));
  const link = element("a");
  link.href = URL.createObjectURL(await reply.blob());
  link.download = named ? decodeURIComponent(named[1]) : "answers";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const STATES = {
  waiting: "waiting for its turn", working: "being answered", stopping: "stopping after this batch",
  stopped: "stopped", failed: "stopped by an error", done: "answered",
};

function fill(row, upload) {
  const get = (name) => row.querySelector(name), { state, answered, refused } = upload;
  const put = (name, text) => { if (get(name).textContent !== text) get(name).textContent = text; };
  if (row.state && row.state !== state) $("file-status").textContent = `${upload.name}: ${STATES[state]}.`;
  row.state = state;
  put(".upload-name", $("models").length > 1 ? `${upload.name}, for ${upload.model}` : upload.name);
  put(".upload-state", STATES[state]);
  const bar = get("progress");
  bar.max = upload.rows;
  bar.value = answered;
  bar.setAttribute("aria-label", `${upload.name}: ${answered} of ${upload.rows} texts answered`);
  // The rate is that of what this page has watched.
  if (state !== "working") row.since = null;
  else row.since = row.since || { answered, at: performance.now() };
  const rate = row.since ? (1000 * (answered - row.since.answered)) / (performance.now() - row.since.at) : 0;
  const left = rate > 0 ? `, ${remaining((upload.rows - answered) / rate)} left` : "";
  const marked = refused ? `, ${number.format(refused)} of them refused` : "";
  put(".upload-counts", `${number.format(answered)} of ${number.format(upload.rows)} texts${marked}${left}`);
  get(".upload-error").hidden = !upload.error;
  put(".upload-error", upload.error ? `${upload.error}. What to do: ${upload.fix}.` : "");
  const list = get(".upload-refused");
  list.hidden = !refused;
  if (refused && row.refused !== refused) {
    row.refused = refused;
    const reasons = [...new Set(upload.first_refused.map((each) => each.fix))];
    const them = refused > 1 ? "them" : "it";
    put(".upload-refused summary", `${number.format(refused)} refused: no answer was made up for ${them}`);
    put(".upload-fix", `What to do: ${reasons.join("; or ")}.`);
    const items = upload.first_refused.map((each) => element("li", `row ${each.row}: ${each.reason}`));
    if (refused > items.length) items.push(element("li", `and ${number.format(refused - items.length)} more, marked in the file`));
    get(".upload-refused ul").replaceChildren(...items);
  }
  get(".do-stop").hidden = !["waiting", "working"].includes(state);
  get(".do-go-on").hidden = !["stopped", "failed"].includes(state);
  get(".do-download").hidden = state !== "done";
  get(".do-remove").hidden = !["stopped", "failed", "done"].includes(state);
  for (const button of row.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent}: ${upload.name}`);
  }
}

function remaining(value) {
  if (value < 90) return `${Math.ceil(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

begin();
