"use strict";
// The page reads without this script. It adds: the figures of a token by pointer or arrow keys, a filter, a part that a
// link leads to is opened, and news for `agentopcd view`. It never makes HTML of a text.
(() => {
  const parts = (root) => new Map([...root.querySelectorAll("[data-part]")].map((part) => [part.id, part]));
  const texts = (root) => new Map([...parts(root)].map(([id, part]) => [id, part.outerHTML]));
  let sent = texts(document); // what the server sent, before a person opens or filters anything

  const token = (node) => (node instanceof Element ? node.closest(".tokens > .t") : null);
  const tell = (one) => {
    const said = one.closest(".turn").querySelector(".told");
    if (said.textContent !== one.title) said.textContent = one.title;
  };
  document.addEventListener("pointerover", (event) => token(event.target) && tell(token(event.target)));
  document.addEventListener("focusin", (event) => {
    const one = token(event.target);
    if (!one) return;
    for (const other of one.parentElement.children) {
      other.tabIndex = other === one ? 0 : -1;
      other.setAttribute("aria-selected", String(other === one));
    }
    tell(one);
  });
  document.addEventListener("keydown", (event) => {
    const one = token(event.target);
    if (!one || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = one.parentElement;
    const next = {
      ArrowRight: one.nextElementSibling, ArrowDown: one.nextElementSibling, ArrowLeft: one.previousElementSibling,
      ArrowUp: one.previousElementSibling, Home: all.firstElementChild, End: all.lastElementChild,
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    if (next[event.key]) next[event.key].focus();
  });

  const filter = (select) => {
    const part = select.closest("section");
    const tasks = [...part.querySelectorAll(".task")];
    for (const task of tasks) task.hidden = Boolean(select.value) && task.dataset.pattern !== select.value;
    const left = tasks.filter((task) => !task.hidden).length;
    part.querySelector(".filter output").textContent = `${left} of ${tasks.length} shown`;
  };
  const filters = () => {
    for (const row of document.querySelectorAll(".filter")) row.hidden = false;
    for (const select of document.querySelectorAll(".filter select")) filter(select);
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches(".filter select")) filter(event.target);
  });
  filters();

  const open = () => {
    let node = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const aim = node;
    for (; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    if (aim) aim.scrollIntoView();
  };
  addEventListener("hashchange", open);
  if (location.hash) open();

  if (!("live" in document.body.dataset)) return;
  const EVERY_MS = 3000;
  const FOCUSABLE = "a[href], summary, select, input, [tabindex]";
  let tag = null;
  const exchange = (old, fresh) => {
    const active = old.contains(document.activeElement) ? document.activeElement : null;
    const place = active ? [...old.querySelectorAll(FOCUSABLE)].indexOf(active) : -1;
    for (const details of old.querySelectorAll("details[id]")) {
      const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
      if (same) same.open = details.open;
    }
    for (const select of old.querySelectorAll("select[id]")) {
      const same = fresh.querySelector(`#${CSS.escape(select.id)}`);
      if (same) same.value = select.value;
    }
    for (const box of old.querySelectorAll(".scroll")) {
      const same = [...fresh.querySelectorAll(".scroll")].find((one) => one.ariaLabel === box.ariaLabel);
      if (same) same.dataset.left = box.scrollLeft;
    }
    old.replaceWith(fresh);
    for (const box of fresh.querySelectorAll(".scroll[data-left]")) box.scrollLeft = Number(box.dataset.left);
    if (!active) return;
    const all = [...fresh.querySelectorAll(FOCUSABLE)];
    const byId = active.id && fresh.querySelector(`#${CSS.escape(active.id)}`);
    const byLink = active.href && all.find((one) => one.href === active.href && one.textContent === active.textContent);
    const inside = active.parentElement.id && fresh.querySelector(`#${CSS.escape(active.parentElement.id)} > summary`);
    const found = byId || byLink || (active.tagName === "SUMMARY" && inside) || all[Math.min(place, all.length - 1)];
    if (found) found.focus({ preventScroll: true });
  };
  // Returns whether a part has changed, and whether one must wait because a person is copying from it.
  const update = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const [now, next] = [parts(document), texts(page)];
    // What a person looks at stays where it is: what has the focus, if it is in sight, else the first part in sight.
    const topOf = (one) => (one ? one.getBoundingClientRect().top : 0);
    const active = document.activeElement;
    const held = Boolean(active.closest("[data-part]")) && topOf(active) >= 0 && topOf(active) < innerHeight;
    const anchor = [...now.values()].find((part) => part.getBoundingClientRect().bottom > 0);
    const top = topOf(held ? active : anchor);
    let changed = false;
    let waits = false;
    for (const [id, fresh] of parts(page)) {
      const old = now.get(id);
      if (sent.get(id) === next.get(id)) continue;
      const selection = getSelection();
      if (old && !selection.isCollapsed && old.contains(selection.anchorNode)) {
        next.set(id, sent.get(id));
        waits = true;
        continue;
      }
      if (old) exchange(old, document.adoptNode(fresh));
      else document.getElementById("main").append(document.adoptNode(fresh));
      changed = true;
    }
    for (const [id, old] of now) if (!next.has(id)) old.remove();
    if (changed) filters();
    const same = held ? document.activeElement : anchor && document.getElementById(anchor.id);
    if (same && changed) scrollBy(0, topOf(same) - top);
    sent = next;
    return [changed, waits];
  };
  const say = (text) => {
    const news = document.getElementById("news");
    if (news.textContent !== text) news.textContent = text;
  };
  const ask = async () => {
    try {
      const answer = await fetch(location.href.split("#")[0], { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        const [changed, waits] = update(await answer.text());
        tag = waits ? null : answer.headers.get("ETag");
        if (changed) say(`Changed at ${new Date().toLocaleTimeString()}.`);
      } else if (answer.status !== 304) say(`The server answered ${answer.status}; this page shows what was known before.`);
    } catch {
      say("The server does not answer; this page shows what was known before.");
    }
  };
  const again = async () => {
    if (!document.hidden) await ask();
    setTimeout(again, EVERY_MS);
  };
  again();
})();
