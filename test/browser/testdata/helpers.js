// What the tests ask of a page. It is evaluated by the debugger before each question, so it declares with var.

// tidy makes one space of all white space.
var tidy = (text) => text.replace(/\s+/g, " ").trim();

// visible reports whether a member can see an element.
var visible = (element) => !element.closest("[aria-hidden=true]") && element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && element.getClientRects().length > 0;

// shows reports whether the page shows a text.
var shows = (text) => tidy(document.body.innerText).toLowerCase().includes(tidy(text).toLowerCase());

// named returns the accessible name of a control, as far as the screen needs it.
var named = (element) => {
  const by = element.getAttribute("aria-labelledby");
  if (by) return tidy(by.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" "));
  const label = element.getAttribute("aria-label");
  if (label) return tidy(label);
  if (element.labels?.length) return tidy([...element.labels].map((one) => one.textContent).join(" "));
  return tidy(element.textContent || element.value || element.title || "");
};

var roles = {
  button: "button, [role=button], summary, input[type=submit]",
  link: "a[href]",
  field: "input:not([type=hidden]):not([type=checkbox]):not([type=radio]):not([type=submit]), select, textarea",
  box: "input[type=checkbox], input[type=radio]",
};

// control returns the visible control of a role with a name, in the open dialog if there is one. It prefers
// the whole name to its beginning. near is a text of the smallest row or group around it.
var control = (role, name, near) => {
  const root = [...document.querySelectorAll("dialog[open]")].pop() ?? document;
  let found = [...root.querySelectorAll(roles[role])].filter((one) => !one.disabled && visible(one));
  if (near) {
    found = found.filter((one) => {
      const group = one.closest("tr, li, fieldset, article, [role=row], [role=group]");
      return group && tidy(group.innerText).toLowerCase().includes(near.toLowerCase());
    });
  }
  const whole = found.filter((one) => named(one).toLowerCase() === name.toLowerCase());
  return whole[0] ?? found.find((one) => named(one).toLowerCase().startsWith(name.toLowerCase())) ?? null;
};

// groupOf returns the chosen radio button of a group, or its first.
var isRadio = (element) => element?.type === "radio";
var groupOf = (radio) => radio.form.querySelector(`input[name="${radio.name}"]:checked`) ?? radio.form.querySelector(`input[name="${radio.name}"]`);

// middle scrolls to an element, and returns its middle and whether a click there hits it.
var middle = (element) => {
  let target = element;
  // A box that is drawn by its label is clicked there.
  if (target.getBoundingClientRect().width < 4 && element.labels?.length) target = element.labels[0];
  target.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
  const box = target.getClientRects()[0];
  const x = box.x + box.width / 2, y = box.y + box.height / 2;
  const top = document.elementFromPoint(x, y);
  const hit = !!top && (target.contains(top) || top.contains(target) || [...(element.labels ?? [])].some((label) => label.contains(top)));
  return { X: x, Y: y, Hit: hit, Over: top ? top.outerHTML.slice(0, 200) : "nothing" };
};

// focused returns the element that has the focus.
var focused = () => document.activeElement;

// focusVisible reports whether the element with the focus looks different from how it looks without.
var focusVisible = () => {
  const element = document.activeElement;
  const look = () => {
    const targets = [element, ...(element.labels ?? []), element.parentElement, element.nextElementSibling].filter(Boolean);
    return targets.map((one) => { const s = getComputedStyle(one); return [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow, s.borderColor, s.backgroundColor].join("|"); }).join("||");
  };
  if (!element.matches(":focus-visible")) return false;
  const s = getComputedStyle(element);
  if (s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1 && s.outlineColor !== "rgba(0, 0, 0, 0)") return true;
  const before = look();
  element.blur();
  const after = look();
  element.focus();
  return before !== after;
};

// chosen returns the text of the chosen option.
var chosen = (select) => tidy(select.options[select.selectedIndex]?.text ?? "");

// tooWide names what makes the page wider than the window. What scrolls within itself is meant.
var tooWide = () => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width && document.body.scrollWidth <= width) {
    const open = [...document.querySelectorAll("dialog[open]")].filter((one) => one.scrollWidth > one.clientWidth + 1);
    return open.map((one) => "dialog " + one.scrollWidth + " in " + one.clientWidth);
  }
  return [...document.body.querySelectorAll("*")]
    .filter((one) => visible(one) && one.getBoundingClientRect().right > width + 0.5)
    .slice(0, 5).map((one) => one.outerHTML.slice(0, 150) + " … to " + one.getBoundingClientRect().right);
};

// findings runs axe-core with its rules for WCAG 2.2 A and AA and its best practices.
var findings = async () => {
  const result = await window.axe.run(document, { resultTypes: ["violations"] });
  return result.violations.flatMap((rule) => rule.nodes.map((node) => rule.id + ": " + rule.help + ": " + node.html.slice(0, 300) + " " + (node.failureSummary ?? "")));
};

// stored returns the contents of a storage. Object.entries does not see them all.
var stored = (storage) => Array.from({ length: storage.length }, (_, index) => storage.key(index) + "=" + storage.getItem(storage.key(index))).join("\n");

// everythingKept returns all that a page shows and keeps, by where it is. A page of Chromium's own, such as
// the one for a form that is not sent again, keeps nothing.
var everythingKept = async () => {
  const kept = {};
  kept["the document"] = document.documentElement.outerHTML;
  kept["the fields"] = [...document.querySelectorAll("input, textarea, select, output")].map((one) => one.value + "\n" + (one.defaultValue ?? "")).join("\n");
  kept["the address"] = location.href + " " + document.referrer + " " + document.title;
  kept["history.state"] = JSON.stringify(history.state) ?? "";
  kept["window.name"] = window.name;
  // Globals that the page's own scripts have made.
  kept["globals"] = Object.entries(Object.getOwnPropertyDescriptors(window)).filter(([, own]) => typeof own.value === "string").map(([name, own]) => name + "=" + own.value).join("\n");
  if (location.protocol !== "http:") return kept;
  kept["document.cookie"] = document.cookie;
  kept["localStorage"] = stored(localStorage);
  kept["sessionStorage"] = stored(sessionStorage);
  return kept;
};

// databases returns the contents of IndexedDB and of CacheStorage.
var databases = async () => {
  if (location.protocol !== "http:") return "";
  const done = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); request.onerror = () => resolve(null); });
  let text = "";
  for (const { name } of await indexedDB.databases()) {
    const database = await done(indexedDB.open(name));
    text += name;
    for (const store of database?.objectStoreNames ?? []) text += JSON.stringify(await done(database.transaction(store).objectStore(store).getAll()));
    database?.close();
  }
  for (const name of (await window.caches?.keys()) ?? []) {
    const cache = await caches.open(name);
    for (const request of await cache.keys()) text += request.url + (await (await cache.match(request)).text());
  }
  return text;
};

// rowText returns the text of a key's row in small letters. It is empty if the table has no such row.
var rowText = (name) => {
  const row = [...document.querySelectorAll("tbody tr")].find((one) => tidy(one.querySelector(".keyscreen-name")?.textContent ?? "") === name);
  return row ? tidy(row.textContent).toLowerCase() : "";
};
