// Runs in the page: looks at what is drawn and returns its faults, a line each, and how much it looked at.
//
// asked.answers: question → whether report.json says that it was judged
// asked.pieces: {section, selector, ending, least, name}; `ending` is how a picture's source must end
// asked.window: how wide the page must find its window
// asked.screen: [width, height] of the window that must hold all answers, or null
// asked.paper: [width, height] of what a printer has of a page, or null on a screen
(asked) => {
  const faults = [];
  const fault = (element, found) => faults.push(`${called(element)}: ${found}`);
  const every = (selector, within = document) => [...within.querySelectorAll(selector)];
  const words = (element) => (element ? element.textContent.trim().replace(/\s+/g, " ") : "");
  const shown = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true });
  const root = document.documentElement;

  function called(element) {
    const place = element.parentElement && element.parentElement.closest("[id]");
    const said = element.matches("html, body, section") ? "" : words(element).slice(0, 40);
    const id = element.id && `#${element.id}`;
    const classes = [...element.classList].map((one) => `.${one}`).join("");
    return (place ? `#${place.id} ` : "") + element.localName + id + classes + (said && ` "${said}"`);
  }

  function answers() {
    for (const [question, judged] of Object.entries(asked.answers)) {
      const card = every(".answers .answer").find((one) => words(one.querySelector("h2")) === question);
      if (!card || !shown(card)) {
        faults.push(`.answers: no answer to "${question}"`);
        continue;
      }
      const verdict = words(card.querySelector(".verdict"));
      if (!verdict) fault(card, "no verdict");
      else if (!["not asked", "not judged"].includes(verdict.toLowerCase()) !== judged)
        fault(card, `verdict "${verdict}", but report.json says ${judged ? "judged" : "not judged"}`);
      const box = card.getBoundingClientRect();
      const [width, height] = asked.screen ?? [Infinity, Infinity];
      if (box.left < 0 || box.top < 0 || box.right > width || box.bottom > height)
        fault(
          card,
          `reaches ${Math.round(box.right)}, ${Math.round(box.bottom)}; the first screen is ${width}×${height}`,
        );
    }
  }

  // On a screen details are opened, so that what is in them is looked at; on paper nobody can.
  function details() {
    for (const one of every("details")) {
      one.open ||= !asked.paper;
      if (![...one.children].every((part) => shown(part)))
        fault(one, asked.paper ? "closed on paper" : "cannot be opened");
    }
  }

  function pieces() {
    if (!document.title.trim()) faults.push("head: no title");
    if (!root.lang) faults.push("html: no language");
    for (const piece of asked.pieces) {
      const found = every(`#${piece.section} :is(${piece.selector})`).filter(
        (one) => shown(one) && (!piece.ending || one.src.endsWith(piece.ending)),
      );
      if (found.length < piece.least)
        faults.push(`#${piece.section}: ${found.length} of ${piece.name}; wanted ${piece.least}`);
    }
  }

  function names() {
    const ids = new Set();
    for (const element of every("[id]")) {
      if (ids.has(element.id)) fault(element, "its id stands twice in the page");
      ids.add(element.id);
    }
    for (const link of every('a[href^="#"]'))
      if (!ids.has(link.hash.slice(1))) fault(link, `leads to ${link.hash}, which is not there`);
  }

  function headings() {
    let level = 0;
    for (const heading of every("h1, h2, h3, h4, h5, h6").filter(shown)) {
      const own = Number(heading.localName[1]);
      if (own > level + 1) fault(heading, `comes after a heading of level ${level}`);
      if (own === 1 && level > 0) fault(heading, "a second h1, or one after other headings");
      level = own;
    }
  }

  function pictures() {
    for (const image of every("img")) {
      const { width, height } = image.getBoundingClientRect();
      const { naturalWidth, naturalHeight } = image;
      if (!image.complete || !naturalWidth) fault(image, `did not load: ${image.src.slice(0, 40)}…`);
      else if (Math.abs((width * naturalHeight) / (height * naturalWidth) - 1) > 0.02)
        fault(
          image,
          `is ${naturalWidth}×${naturalHeight}, drawn ${Math.round(width)}×${Math.round(height)}: stretched`,
        );
      if (!image.alt.trim()) fault(image, "no alt text");
    }
  }

  function charts() {
    for (const chart of every("svg")) {
      if (!words(chart.querySelector(":scope > title"))) fault(chart, "no title");
      const frame = chart.getBoundingClientRect();
      const texts = every("text", chart).filter(shown);
      const boxes = texts.map((one) => one.getBoundingClientRect());
      boxes.forEach((box, index) => {
        const out = Math.max(
          frame.left - box.left,
          frame.top - box.top,
          box.right - frame.right,
          box.bottom - frame.bottom,
        );
        if (out > 1) fault(texts[index], `reaches ${out.toFixed(1)} out of its chart`);
        boxes.slice(0, index).forEach((other, before) => {
          const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
          const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
          const smaller = Math.min(box.width * box.height, other.width * other.height);
          // A box has room above and below its letters: a little of it may be shared.
          if (across > 0 && down > 0 && across * down > 0.15 * smaller)
            fault(texts[index], `lies over ${called(texts[before])}`);
        });
      });
    }
  }

  function room() {
    const scrolls = (element) =>
      element && (getComputedStyle(element).overflowX !== "visible" || scrolls(element.parentElement));
    const right = (element) => {
      const box = element.getBoundingClientRect();
      return box.left + Math.max(element.scrollWidth, box.width);
    };
    if (root.scrollWidth > root.clientWidth) {
      const out = every("body *").filter(
        (one) => right(one) > root.clientWidth + 0.5 && !scrolls(one.parentElement),
      );
      fault(
        out.at(-1) ?? document.body,
        `the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`,
      );
    } else if (innerWidth !== asked.window)
      fault(root, `laid out for a window of ${innerWidth}, wanted ${asked.window}: no meta viewport?`);
    for (const element of asked.paper ? [] : texts) {
      const { left } = element.getBoundingClientRect();
      if (left < 4 && !scrolls(element)) fault(element, "stands at the edge of the window: no margin");
    }
    const cuts = asked.paper ? /hidden|clip|auto|scroll/ : /hidden|clip/;
    for (const element of every("body *:not(svg, svg *)").filter(shown)) {
      const { overflowX, overflowY } = getComputedStyle(element);
      const { scrollWidth, scrollHeight, clientWidth, clientHeight } = element;
      if (
        (cuts.test(overflowX) && scrollWidth > clientWidth + 1) ||
        (cuts.test(overflowY) && scrollHeight > clientHeight + 1)
      )
        fault(element, `cut: holds ${scrollWidth}×${scrollHeight}, shows ${clientWidth}×${clientHeight}`);
      const height = element.getBoundingClientRect().height;
      if (asked.paper && element.matches("figure, img, article, tr") && height > asked.paper[1])
        fault(element, `${Math.round(height)} high; a page holds ${asked.paper[1]}`);
    }
  }

  let texts;
  function written() {
    texts = new Set();
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const element = walk.currentNode.parentElement;
      if (
        walk.currentNode.data.trim() &&
        !element.matches("script, style, noscript, svg title") &&
        shown(element)
      )
        texts.add(element);
    }
  }

  // Contrast as WCAG 2.2 has it: 1.4.3 for text, 1.4.11 for what is drawn in charts.
  let least = Infinity;
  function colours() {
    for (const element of texts) {
      const style = getComputedStyle(element);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      if (pictured(element)) fault(element, "text over a picture: its contrast cannot be told");
      else
        least = Math.min(
          least,
          judge(element, element.closest("svg") ? style.fill : style.color, large ? 3 : 4.5, "text"),
        );
    }
    for (const mark of every("svg :is(polyline, polygon, path, circle, rect, line):not(.grid)").filter(
      shown,
    )) {
      const { stroke, fill } = getComputedStyle(mark);
      if (stroke !== "none") judge(mark, stroke, 3, "line");
      else if (fill !== "none") judge(mark, fill, 3, "area");
    }
    if (!asked.paper) return;
    if (luminance(background(document.body)) < 0.8) fault(document.body, "dark paper");
    for (const element of every("body *:not(svg *)").filter(
      (one) => shown(one) && !words(one) && one.localName !== "img",
    )) {
      const style = getComputedStyle(element);
      if (parsed(style.backgroundColor)[3] > 0 && style.printColorAdjust !== "exact")
        fault(element, "a colour that printers leave out; wanted print-color-adjust: exact");
    }
  }

  function judge(element, colour, wanted, what) {
    const ink = parsed(colour);
    ink[3] *= opacity(element);
    // Paper is white: printers leave backgrounds out unless they are told to keep them.
    const grounds = asked.paper ? [background(element), WHITE] : [background(element)];
    const found = Math.min(...grounds.map((ground) => contrast(over(ink, ground), ground)));
    if (found < wanted) fault(element, `${what} contrast ${found.toFixed(2)}, wanted ${wanted}`);
    return found;
  }

  const WHITE = [255, 255, 255, 1];
  const behind = new Map();
  function background(element) {
    if (!element) return WHITE;
    if (!behind.has(element))
      behind.set(
        element,
        over(parsed(getComputedStyle(element).backgroundColor), background(element.parentElement)),
      );
    return behind.get(element);
  }

  const opacity = (element) =>
    element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const pictured = (element) =>
    element && (getComputedStyle(element).backgroundImage !== "none" || pictured(element.parentElement));
  const over = (top, under) => [...[0, 1, 2].map((at) => top[3] * top[at] + (1 - top[3]) * under[at]), 1];

  function parsed(colour) {
    const form = colour.match(/^(?:rgba?\(|color\(srgb )([^)]*)\)$/);
    if (!form) throw new Error(`${colour}: a colour in a form that this check does not know`);
    const [red, green, blue, alpha = 1] = form[1].match(/[\d.e-]+/g).map(Number);
    const full = colour.startsWith("rgb") ? 1 : 255;
    return [red * full, green * full, blue * full, alpha];
  }

  function luminance(colour) {
    const [red, green, blue] = colour
      .slice(0, 3)
      .map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function contrast(one, other) {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  }

  answers(); // first: opened details make cards longer
  details();
  written();
  pieces();
  names();
  headings();
  pictures();
  charts();
  room();
  colours();
  const count = (selector) => every(selector).length;
  return { faults, elements: count("body *"), pictures: count("img"), charts: count("svg"), contrast: least };
};
