// A session's line. Python sends what changes; the clocks run here, so an idle notebook sends nothing.

const TRAITS = ["session_name", "hardware", "price_per_hour_usd", "state", "reason", "since", "idle_s", "idle_at",
  "started_at", "ended_at"];
// The machine notices that its time is up a moment after the countdown does.
const GRACE_S = 2;

function words(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  const minutes = Math.floor(whole / 60);
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

// Seconds that run down beside one's work only disturb, until they are few.
function left(seconds) {
  return words(seconds > 120 ? Math.ceil(seconds / 60) * 60 : seconds);
}

function sentence(text) {
  return text.replace(/[.\s]+$/, "");
}

function element(tag, className, attributes = {}) {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function write(node, text) {
  // A screen reader says again what is written again.
  if (node.textContent !== text) node.textContent = text;
}

function render({ model, el }) {
  const name = model.get("session_name");
  const panel = element("div", "flow-panel", { role: "group", "aria-label": `Session ${name}` });
  const dot = element("span", "flow-panel-dot", { "aria-hidden": "true" });
  const title = element("span", "flow-panel-title");
  const status = element("span", "flow-panel-status", { role: "status" });
  const timer = element("span", "flow-panel-timer", { role: "timer" });
  const money = element("span", "flow-panel-money");
  const problem = element("span", "flow-panel-problem", { role: "alert" });
  const buttons = element("span", "flow-panel-buttons");
  const question = element("span", "flow-panel-question", { id: `flow-question-${Math.random().toString(36).slice(2)}` });

  let clockOffsetS = 0;
  let isAsking = false;
  let lookedFor = null;
  const waiting = new Set();

  const now = () => Date.now() / 1000 + clockOffsetS;

  function button(label, says, onPress) {
    const made = element("button", "flow-panel-button", { type: "button", "aria-label": says });
    made.textContent = label;
    made.addEventListener("click", onPress);
    return made;
  }

  function send(what) {
    problem.textContent = "";
    waiting.add(what);
    model.send({ do: what });
    draw();
  }

  function ask(yes) {
    isAsking = yes;
    draw();
    (yes ? end : stop).focus();
  }

  const interrupt = button("Interrupt", `Interrupt the cell that runs in session ${name}`, () => send("interrupt"));
  const keep = button("Keep 2 h", `Let session ${name} live for 2 hours when nothing runs`, () => send("keep"));
  const stop = button("Stop", `End session ${name}`, () => ask(true));
  const end = button("End it", `End session ${name} with its variables`, () => {
    isAsking = false;
    send("stop");
  });
  const back = button("Go on", "Do not end it", () => ask(false));
  end.classList.add("flow-panel-danger");
  end.setAttribute("aria-describedby", question.id);
  buttons.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isAsking) return;
    event.stopPropagation();
    ask(false);
  });

  // Where the countdown is over and nobody has said otherwise, the session has ended itself.
  function state() {
    const said = model.get("state");
    const idleAt = model.get("idle_at");
    return said === "idle" && idleAt !== null && now() > idleAt ? "ended" : said;
  }

  function describe(current) {
    const reason = sentence(model.get("reason") || "");
    if (current === "ended" && model.get("state") === "idle") {
      return `ended: nothing ran in it for ${words(model.get("idle_s"))}`;
    }
    return reason ? `${current}: ${reason}` : current;
  }

  function time(current) {
    const since = model.get("since");
    if ((current === "starting" || current === "running") && since !== null) return words(now() - since);
    const idleAt = model.get("idle_at");
    return current === "idle" && idleAt !== null ? `ends in ${left(idleAt - now())}` : "";
  }

  function spent() {
    const price = model.get("price_per_hour_usd");
    if (!price) return "";
    const started = model.get("started_at");
    const hours = started === null ? 0 : Math.max(0, (model.get("ended_at") ?? now()) - started) / 3600;
    return `$${price.toFixed(2)} per hour, $${(price * hours).toFixed(2)} so far`;
  }

  function draw() {
    const current = state();
    const isLive = current !== "ended" && current !== "stopping";
    isAsking = isAsking && isLive;
    panel.dataset.state = current;
    write(title, `${name} on ${model.get("hardware")}`);
    write(status, describe(current));
    write(timer, time(current));
    write(money, spent());
    write(question, isAsking ? "End it with its variables?" : "");
    interrupt.hidden = isAsking || current !== "running";
    keep.hidden = stop.hidden = isAsking || !isLive;
    end.hidden = back.hidden = !isAsking;
    interrupt.disabled = waiting.has("interrupt");
    keep.disabled = waiting.has("keep");
    stop.disabled = waiting.has("stop");
  }

  function tick() {
    draw();
    const idleAt = model.get("idle_at");
    if (model.get("state") === "idle" && idleAt !== null && now() > idleAt + GRACE_S && lookedFor !== idleAt) {
      lookedFor = idleAt;
      model.send({ do: "look" });
    }
  }

  function onMessage(message) {
    if (message.error) write(problem, message.error);
    if (message.now === undefined) return;
    clockOffsetS = message.now - Date.now() / 1000;
    waiting.delete(message.done);
    draw();
  }

  title.title = name;
  buttons.append(question, interrupt, keep, stop, end, back);
  panel.append(dot, title, status, timer, money, problem, buttons);
  el.append(panel);
  for (const trait of TRAITS) model.on(`change:${trait}`, draw);
  model.on("msg:custom", onMessage);
  draw();
  model.send({ do: "look" });
  const ticking = setInterval(tick, 1000);

  return () => {
    clearInterval(ticking);
    for (const trait of TRAITS) model.off(`change:${trait}`, draw);
    model.off("msg:custom", onMessage);
  };
}

export default { render };
