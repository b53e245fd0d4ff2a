// What htmx and plain HTML do not do: pause what updates itself, tick all rows, and keep the page here in the menu seen.
"use strict";

(() => {
  // What updates itself stands still while nobody sees it, while it is paused, and while somebody is within it: an open
  // table would close, and the focus would be lost.
  const stands = (live) =>
    document.hidden ||
    document.querySelector("[data-pause][aria-pressed='true']") !== null ||
    live.querySelector("details[open]") !== null ||
    live.contains(document.activeElement);
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.matches("[data-live]") && stands(event.target)) event.preventDefault();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pause]");
    if (button === null) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Go on updating" : "Pause updates";
  });

  // A box that ticks all rows of its table.
  document.addEventListener("change", (event) => {
    const all = event.target.closest("[data-all]");
    if (all === null) return;
    for (const each of all.closest("table").querySelectorAll("tbody input[type='checkbox']")) each.checked = all.checked;
  });

  // What cannot be had is told of: else an old answer would be taken for a new one.
  const tell = (text) => {
    const said = document.getElementById("said");
    if (said === null) return;
    const box = document.createElement("div");
    const line = document.createElement("p");
    box.className = "said bad";
    box.dataset.trouble = "";
    line.textContent = text;
    box.append(line);
    said.replaceChildren(box);
  };
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) window.location.reload();
    else tell(`The panel answered with ${event.detail.xhr.status}: what you see may be old.`);
  });
  document.addEventListener("htmx:sendError", () => tell("The panel does not answer: what you see may be old."));
  document.addEventListener("htmx:timeout", () => tell("The panel does not answer in time: what you see may be old."));
  document.addEventListener("htmx:afterOnLoad", () => {
    const trouble = document.querySelector("#said [data-trouble]");
    if (trouble !== null) trouble.remove();
  });

  const start = () => {
    for (const each of document.querySelectorAll("[data-scripted]")) each.hidden = false;
    // What came of an action is where reading begins; screen readers say nothing of it by themselves.
    const said = document.querySelector("#said > .said");
    if (said !== null) said.focus({ preventScroll: true });
    const here = document.querySelector(".nav [aria-current]");
    const strip = here && here.closest(".nav");
    if (strip) strip.scrollLeft = here.offsetLeft - strip.offsetLeft - 16;
  };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSwap", () => {
    for (const each of document.querySelectorAll("[data-scripted]")) each.hidden = false;
  });
})();
