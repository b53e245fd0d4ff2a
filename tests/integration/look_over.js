// What is wrong with a page for those who see badly, or do not see: one line for each fault.
() => {
  const faults = [];

  // The ratio of WCAG 2.1, 1.4.3, of each text to what is behind it.
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (f, b) => ({ r: f.r * f.a + b.r * (1 - f.a), g: f.g * f.a + b.g * (1 - f.a), b: f.b * f.a + b.b * (1 - f.a), a: 1 });
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(parse(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((below, above) => over(above, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  for (const each of document.querySelectorAll("body *")) {
    const texts = [...each.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const box = each.getBoundingClientRect();
    if (!texts || box.width < 2 || box.height < 2 || each.closest("[disabled], svg")) continue;
    const back = behind(each);
    const front = over(parse(getComputedStyle(each).color), back);
    const [more, less] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (more + 0.05) / (less + 0.05);
    if (ratio < 4.5) faults.push(`pale, ${ratio.toFixed(2)}: ${each.tagName}.${each.className} ${each.textContent.trim().slice(0, 30)}`);
  }

  // Names: of fields, buttons, links and pictures; and none that two elements have.
  const shown = (each) => each.outerHTML.slice(0, 80);
  for (const each of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (!each.labels?.length && !each.getAttribute("aria-label")) faults.push(`no label: ${shown(each)}`);
  }
  for (const each of document.querySelectorAll("button, a[href]")) {
    if (!each.textContent.trim()) faults.push(`no words: ${shown(each)}`);
  }
  for (const each of document.querySelectorAll("svg")) {
    if (!each.closest("[aria-hidden=true]") && !each.getAttribute("aria-label")) faults.push(`no words: ${shown(each)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  for (const id of new Set(ids.filter((each, place) => ids.indexOf(each) !== place))) faults.push(`twice: #${id}`);
  for (const name of ["h1", "main", "head > title"]) {
    if (document.querySelectorAll(name).length !== 1) faults.push(`not one ${name}`);
  }
  return [...new Set(faults)];
}
