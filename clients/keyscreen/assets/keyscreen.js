// What makes the screen better where there is JavaScript. Without it every link and form works as a page.
(() => {
  "use strict";
  const root = document.querySelector("[data-keyscreen]");
  if (!root || typeof HTMLDialogElement === "undefined") return;
  const words = root.dataset;
  const find = (selector) => root.querySelector(selector);
  const say = (text) => { const live = find("[data-keyscreen-live]"); if (live) live.textContent = text; };

  // ask fetches a page of the screen, and remembers nothing.
  async function ask(address, options) {
    const response = await fetch(address, { credentials: "same-origin", cache: "no-store", ...options });
    if (!(response.headers.get("Content-Type") || "").startsWith("text/html")) throw new Error("not a page");
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  // ---- The panel of a form or a token, in the page or in a dialog.

  function settle(panel) {
    for (const button of panel.querySelectorAll("[data-keyscreen-copy]")) button.hidden = false;
    const target = panel.querySelector('[aria-invalid="true"]') || panel.querySelector("[data-keyscreen-focus]") ||
      (panel.hasAttribute("data-keyscreen-once") ? null : panel.querySelector('input[type="radio"][name="overlap"]:checked, input:not([type="hidden"], [type="radio"], [type="checkbox"])')) ||
      panel.querySelector("h1");
    if (target) target.focus();
  }

  function status(panel, text) {
    const place = panel && panel.querySelector("[data-keyscreen-status]");
    if (place) place.textContent = text; else say(text);
  }

  async function copy(panel) {
    const token = panel.querySelector("[data-keyscreen-token]");
    try {
      await navigator.clipboard.writeText(token.textContent);
      status(panel, words.copied);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(token);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      status(panel, words.notCopied);
    }
    panel.dataset.copied = "yes";
  }

  // preset checks boxes as the button's page would, without asking for it.
  function preset(button) {
    for (const box of button.form.querySelectorAll('input[name="scope"]')) {
      box.checked = button.value === "all" || (button.value === "read" && box.value.endsWith(":read"));
    }
  }

  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches("[data-keyscreen-copy]")) copy(button.closest("[data-keyscreen-panel]"));
    if (button.name === "preset") { event.preventDefault(); preset(button); }
  });
  root.addEventListener("input", (event) => {
    if (event.target.name !== "date") return;
    const radio = event.target.form.querySelector('input[name="expiry"][value="date"]');
    if (radio) radio.checked = true;
  });
  // A page that is left must not come back from memory with the token.
  addEventListener("pagehide", () => {
    for (const token of document.querySelectorAll("[data-keyscreen-token]")) token.textContent = "";
  });

  const results = () => find("[data-keyscreen-results]");
  if (!results()) {
    const panel = find("[data-keyscreen-panel]");
    if (panel) settle(panel);
    return;
  }

  // ---- Dialogs over the table.

  const dialog = document.createElement("dialog");
  dialog.className = "keyscreen-dialog";
  dialog.setAttribute("aria-labelledby", "keyscreen-panel-title");
  const content = document.createElement("div");
  const x = document.createElement("button");
  x.type = "button";
  x.className = "keyscreen-x";
  x.textContent = "×";
  x.setAttribute("aria-label", words.close);
  dialog.append(content, x);
  root.append(dialog);

  let opener = "";      // the address of the link that opened the dialog
  let changed = false;  // whether the table is to be fetched again
  let busy = false;

  function replaceResults(page) {
    const fresh = page.querySelector("[data-keyscreen-results]");
    if (!fresh) { location.reload(); return; }
    results().replaceWith(document.adoptNode(fresh));
  }

  // show puts a page into the dialog; a page with the table closes it.
  function show(page, address) {
    const panel = page.querySelector("[data-keyscreen-panel]");
    if (!panel) {
      changed = false;
      if (!page.querySelector("[data-keyscreen-results]")) { location.assign(address); return; } // such as a log-in
      replaceResults(page);
      dialog.close();
      const notice = find("[data-keyscreen-notice]");
      if (notice) { say(notice.textContent); notice.focus(); }
      return;
    }
    content.replaceChildren(document.adoptNode(panel));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    settle(panel);
  }

  async function load(address, options) {
    if (busy) return;
    busy = true;
    dialog.setAttribute("aria-busy", "true");
    try {
      show(await ask(address, options), options ? location.href : address);
    } catch {
      fail();
    } finally {
      busy = false;
      dialog.removeAttribute("aria-busy");
    }
  }

  function fail() {
    const place = dialog.open ? content.querySelector("[data-keyscreen-panel] h1") : find("#keyscreen-title");
    const old = root.querySelector("[data-keyscreen-failure]");
    if (old) old.remove();
    const alert = document.createElement("p");
    alert.className = "keyscreen-alert";
    alert.setAttribute("role", "alert");
    alert.setAttribute("data-keyscreen-failure", "");
    alert.textContent = words.failed;
    if (place) place.after(alert);
  }

  // guarded reports whether the dialog has a token that was not copied.
  function guarded() {
    const panel = content.querySelector("[data-keyscreen-once]");
    if (!panel || panel.dataset.copied) return false;
    status(panel, words.copyFirst);
    panel.querySelector("[data-keyscreen-copy]").focus();
    return true;
  }

  x.addEventListener("click", () => { if (!guarded()) dialog.close(); });
  dialog.addEventListener("cancel", (event) => { if (guarded()) event.preventDefault(); });
  dialog.addEventListener("close", async () => {
    content.replaceChildren(); // with the token
    const back = () => {
      const link = [...root.querySelectorAll("a[data-keyscreen-dialog]")].find((known) => known.getAttribute("href") === opener);
      (link || find("#keyscreen-title")).focus();
    };
    if (!changed) { if (!find("[data-keyscreen-notice]")) back(); return; }
    changed = false;
    try {
      replaceResults(await ask(results().dataset.refresh));
      back();
    } catch {
      fail();
    }
  });

  root.addEventListener("click", (event) => {
    if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.defaultPrevented) return;
    const link = event.target.closest("a");
    if (!link) return;
    if (dialog.contains(link) && link.matches("[data-keyscreen-close]")) {
      event.preventDefault();
      dialog.close();
    } else if (link.matches("[data-keyscreen-dialog]")) {
      event.preventDefault();
      if (!dialog.contains(link)) opener = link.getAttribute("href");
      load(link.href);
    }
  });
  dialog.addEventListener("submit", (event) => {
    event.preventDefault();
    changed = true;
    load(event.target.action, { method: "POST", body: new URLSearchParams(new FormData(event.target, event.submitter)) });
  });

  // ---- The table.

  root.classList.add("keyscreen-live");
  history.replaceState(history.state, "", results().dataset.refresh); // without the notice
  const first = find("[data-keyscreen-notice]");
  if (first) first.focus();

  let timer = 0;
  let asking = null;
  async function filter() {
    const form = find("[data-keyscreen-filters]");
    if (asking) asking.abort();
    asking = new AbortController();
    const address = form.action + "?" + new URLSearchParams(new FormData(form));
    try {
      const page = await ask(address, { signal: asking.signal });
      const fresh = page.querySelector("[data-keyscreen-rows]");
      const now = find("[data-keyscreen-rows]");
      if (!fresh || !now) { replaceResults(page); return; }
      const refresh = page.querySelector("[data-keyscreen-results]").dataset.refresh;
      now.replaceWith(document.adoptNode(fresh));
      results().dataset.refresh = refresh;
      history.replaceState(history.state, "", refresh);
      const total = fresh.querySelector("[data-keyscreen-total], .keyscreen-empty p");
      if (total) say(total.textContent);
    } catch (error) {
      if (error.name !== "AbortError") fail();
    }
  }
  root.addEventListener("input", (event) => {
    if (!event.target.closest("[data-keyscreen-filters]")) return;
    clearTimeout(timer);
    timer = setTimeout(filter, event.target.type === "search" ? 300 : 0);
  });
  root.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-keyscreen-filters]")) return;
    event.preventDefault();
    clearTimeout(timer);
    filter();
  });
})();
