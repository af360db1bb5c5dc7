"use strict";
(() => {
  const $ = (selector, inside = document) => inside.querySelector(selector);
  const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const data = JSON.parse($("#data").textContent);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  document.documentElement.classList.add("js");

  const written = (value) =>
    Number.isInteger(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : String(value);

  // Something with places to step through by arrow keys; a screen reader says the place.
  function steps(element, count, now, show) {
    element.setAttribute("role", "slider");
    element.tabIndex = 0;
    element.setAttribute("aria-valuemin", 0);
    element.setAttribute("aria-valuemax", count - 1);
    const go = (place) => {
      element.setAttribute("aria-valuenow", place);
      element.setAttribute("aria-valuetext", show(place));
    };
    element.addEventListener("keydown", (event) => {
      const jump = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -10, ArrowUp: 10, PageDown: -10, PageUp: 10 }[event.key];
      const place = event.key === "Home" ? 0 : event.key === "End" ? count - 1
        : jump === undefined ? undefined : clamp(now() + jump, 0, count - 1);
      if (place === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      go(place);
    });
    element.setAttribute("aria-valuenow", 0);
    return go;
  }

  // Charts: read values off.
  for (const figure of $$(".chart")) {
    const chart = data.charts[figure.dataset.chart];
    const svg = $(":scope > svg", figure), hair = $(".hair", svg), readout = $(".readout", figure);
    const xs = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let place = -1;
    const nearest = (values, x) =>
      values.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(values[best] - x) ? i : best), 0);
    const show = (at) => {
      place = at;
      const x = xs[at];
      const left = chart.left + ((x - chart.low) / (chart.high - chart.low)) * (chart.right - chart.left);
      hair.setAttribute("x1", left);
      hair.setAttribute("x2", left);
      hair.setAttribute("visibility", "visible");
      const values = chart.lines.map((line) => `${line.name} ${written(line.y[nearest(line.x, x)])}`);
      return (readout.textContent = `${chart.axis} ${written(Math.round(x))}: ${values.join(", ")}`);
    };
    const hide = () => {
      hair.setAttribute("visibility", "hidden");
      readout.textContent = "";
    };
    const go = steps(svg, xs.length, () => place, show);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const x = chart.low + ((at - chart.left) / (chart.right - chart.left)) * (chart.high - chart.low);
      go(nearest(xs, x));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
  }

  // Tables: sort by a column.
  for (const table of $$("table.sortable")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    const heads = $$("th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
        const key = (row) => row.cells[column]?.dataset.raw ?? row.cells[column]?.textContent ?? "";
        const compare = (a, b) => {
          const [one, two] = [key(a), key(b)];
          if (!one || !two) return (one ? 0 : 1) - (two ? 0 : 1);
          const numbers = one - two;
          return way * (Number.isNaN(numbers) ? one.localeCompare(two, undefined, { numeric: true }) : numbers);
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  // Clusters: choose a labeling, sort, filter.
  const controls = $(".controls");
  if (controls) {
    controls.hidden = false;
    const labelings = $$(".labeling"), filter = $("#cluster-filter"), only = $("#cluster-shown");
    const first = { purity: -1, size: -1, index: 1 };
    let labeling = 0, sort = "purity", way = -1;
    const hasPurity = $$(".cluster").some((cluster) => Number(cluster.dataset.purity) >= 0);
    if (!hasPurity) {
      $('[data-sort="purity"]', controls).hidden = true;
      sort = "size";
    }
    const update = (reorder = true) => {
      const wanted = filter.value.trim().toLowerCase();
      let seen = 0, all = 0;
      labelings.forEach((section, i) => {
        section.hidden = i !== labeling;
        if (section.hidden) return;
        const list = $(".list", section), clusters = $$(".cluster", list);
        if (reorder) {
          clusters.sort((a, b) => way * (a.dataset[sort] - b.dataset[sort]) || a.dataset.index - b.dataset.index);
          list.append(...clusters);
        }
        for (const cluster of clusters) {
          const exact = /^#\d+$/.test(wanted);
          const fits = exact ? `#${cluster.dataset.index}` === wanted : cluster.dataset.text.includes(wanted);
          cluster.hidden = !fits || (only.checked && !cluster.classList.contains("looked"));
          seen += !cluster.hidden;
        }
        all = clusters.length;
      });
      for (const button of $$("[data-sort]", controls)) {
        const own = button.dataset.sort === sort;
        button.setAttribute("aria-pressed", own);
        $(".way", button).textContent = own ? (way > 0 ? "↑" : "↓") : "";
        const order = way > 0 ? "lowest first" : "highest first";
        button.setAttribute("aria-label", own ? `${button.textContent.replace(/[↑↓]/, "")}, ${order}` : button.textContent);
      }
      for (const button of $$("[data-labeling]", controls)) {
        button.setAttribute("aria-pressed", Number(button.dataset.labeling) === labeling);
      }
      $(".count", controls).textContent = seen === all ? `${all} clusters` : `${seen} of ${all} clusters`;
      $(".nothing").hidden = seen > 0;
    };
    controls.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.labeling) labeling = Number(button.dataset.labeling);
      if (button.dataset.sort) {
        way = button.dataset.sort === sort ? -way : first[button.dataset.sort];
        sort = button.dataset.sort;
      }
      update();
    });
    filter.addEventListener("input", () => update(false));
    only.addEventListener("change", () => update(false));
    update();
  }

  // Clips: a film strip opens the viewer, where its video plays.
  const viewer = $("#viewer"), screen = $(".screen", viewer), film = $(".film", viewer);
  let open = null;
  for (const clip of $$(".clip")) {
    const strip = $(".film", clip);
    if (!strip || !$("video", clip)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "film";
    button.setAttribute("aria-label", `Play ${clip.dataset.id}: ${clip.dataset.about}`);
    button.append(...strip.childNodes);
    strip.replaceWith(button);
    button.addEventListener("click", () => show(clip));
  }
  // Clips that can be gone through: those of the labeling and clusters that are shown now.
  const shown = () =>
    $$(".clip").filter((clip) => $("button.film", clip) && !clip.closest("[hidden]"));
  function putBack() {
    const video = $("video", screen);
    if (!video) return;
    video.pause();
    open.append(video);
    open.insertBefore(video, $("figcaption", open));
  }
  function show(clip) {
    const all = shown();
    putBack();
    open = clip;
    const video = $("video", clip);
    screen.append(video);
    film.replaceChildren(...$$("button.film > *", clip).map((part) => part.cloneNode(true)));
    $("#viewer-title").textContent = clip.dataset.id;
    $(".about", viewer).textContent = clip.dataset.about;
    $(".place", viewer).textContent = `${all.indexOf(clip) + 1} of ${all.length}`;
    if (!viewer.open) viewer.showModal();
    follow(video);
    video.currentTime = 0;
    video.play().catch(() => {}); // where a browser wants another press first, the controls are there
  }
  // A line through strip and spectrogram says where the clip is.
  let frame = 0;
  function follow(video) {
    const place = () => {
      const share = video.duration ? video.currentTime / video.duration : 0;
      film.style.setProperty("--at", `${share * (film.clientWidth - 2)}px`);
    };
    const tick = () => {
      place();
      if (!video.paused && viewer.open) frame = requestAnimationFrame(tick);
    };
    video.ontimeupdate = video.onseeked = place;
    video.onplay = () => {
      cancelAnimationFrame(frame);
      if (!calm.matches) tick();
    };
    place();
  }
  const turn = (by) => {
    const all = shown();
    show(all[(all.indexOf(open) + by + all.length) % all.length]);
  };
  viewer.addEventListener("click", (event) => {
    const wanted = event.target.closest("button")?.dataset.do;
    if (wanted === "close" || event.target === viewer) viewer.close();
    if (wanted === "previous") turn(-1);
    if (wanted === "next") turn(1);
  });
  viewer.addEventListener("close", () => {
    putBack();
    $("button.film", open)?.focus();
  });

  // Maps: colours, one group alone, and which sample a dot is.
  for (const figure of $$(".map")) {
    const map = data.maps[figure.dataset.map];
    const svg = $(":scope > svg", figure), readout = $(".readout", figure), legend = $(".legend", figure);
    const key = $("li svg", legend);
    const dots = $$("circle", svg);
    for (const dot of dots) dot.replaceChildren(); // the browser's own hint would cover the map
    let by = map.first, alone = null, here = 0;
    // Stepping goes from group to group, so that neighbours in order are neighbours in meaning.
    let order = dots.map((_, i) => i);
    const about = (i) =>
      [map.ids[i], ...Object.entries(map.groupings).map(([name, g]) => `${name} ${g.names[g.of[i]]}`)].join(", ");
    const mark = (i) => {
      for (const dot of $$(".here", svg)) dot.classList.remove("here");
      dots[i].classList.add("here");
      return (readout.textContent = about(i));
    };
    const show = (place) => {
      here = place;
      return mark(order[place]);
    };
    const go = steps(svg, dots.length, () => here, show);
    const colour = () => {
      const grouping = map.groupings[by];
      if (!grouping) return;
      dots.forEach((dot, i) => {
        dot.setAttribute("class", `k${grouping.hues[grouping.of[i]]}`);
        dot.classList.toggle("faint", alone !== null && grouping.of[i] !== alone);
      });
      order = dots.map((_, i) => i).sort((a, b) => grouping.of[a] - grouping.of[b] || a - b);
      if (alone !== null) here = order.findIndex((i) => grouping.of[i] === alone) - 1;
      $(".by", figure).textContent = by;
      for (const button of $$("[data-by]", figure)) button.setAttribute("aria-pressed", button.dataset.by === by);
    };
    const name = () => {
      const grouping = map.groupings[by];
      if (!grouping) return;
      const most = 24, items = grouping.names.slice(0, most).map((text, i) => {
        const item = document.createElement("li"), button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", i === alone);
        const name = document.createElement("bdi"), swatch = key.cloneNode(true);
        $("circle", swatch).setAttribute("class", `k${grouping.hues[i]}`);
        name.textContent = text;
        button.append(swatch, name);
        button.addEventListener("click", () => {
          alone = alone === i ? null : i;
          colour();
          $$("button", legend).forEach((other, j) => other.setAttribute("aria-pressed", j === alone));
        });
        item.append(button);
        return item;
      });
      if (grouping.names.length > most) {
        const more = document.createElement("li");
        more.textContent = `and ${grouping.names.length - most} more`;
        items.push(more);
      }
      legend.replaceChildren(...items);
    };
    for (const group of $$(".group", figure)) {
      group.hidden = false;
      group.addEventListener("click", (event) => {
        const wanted = event.target.closest("button")?.dataset.by;
        if (wanted === undefined) return;
        by = wanted;
        alone = null;
        here = 0;
        colour();
        name();
      });
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      let best = -1, least = 15 ** 2;
      dots.forEach((dot, i) => {
        const far = (dot.cx.baseVal.value - x) ** 2 + (dot.cy.baseVal.value - y) ** 2;
        if (far < least) [best, least] = [i, far];
      });
      if (best >= 0) go(order.indexOf(best));
    });
    colour();
    name();
  }

  // The section that is read now.
  const links = new Map($$(".contents a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const section of $$("main > section")) watch.observe(section);
})();
