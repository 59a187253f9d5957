"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];

  // The plots take the colours of text and grid from the page, so that they follow its light and dark modes.
  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const [ink, line, card] = ["--ink", "--line", "--card"].map((name) => style.getPropertyValue(name).trim());
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    const changes = {
      "font.color": ink,
      "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": card,
      "hoverlabel.font.color": ink,
    };
    for (const axis of axes) {
      Object.assign(changes, {
        [`${axis}.gridcolor`]: line, [`${axis}.zerolinecolor`]: line, [`${axis}.linecolor`]: line,
        [`${axis}.color`]: ink,
      });
    }
    return changes;
  }

  async function recolour(plot) {
    const whiskers = plot.data.map((trace, i) => (trace.error_y ? i : -1)).filter((i) => i >= 0);
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    if (whiskers.length) await Plotly.restyle(plot, { "error_y.color": ink }, whiskers);
    await Plotly.relayout(plot, themed(plot.layout));
  }

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function draw() {
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
    for (const plot of plots) {
      const figure = JSON.parse(document.getElementById(`${plot.id}-figure`).textContent);
      const config = { responsive: true, displayModeBar: false, displaylogo: false };
      await Plotly.newPlot(plot, figure.data, figure.layout, config);
      await recolour(plot);
    }
    dark.addEventListener("change", () => plots.forEach(recolour));
    document.documentElement.dataset.drawn = String(plots.length);
  }

  draw().catch((error) => {
    for (const plot of plots) {
      plot.className = "warning";
      plot.textContent = `This plot could not be drawn (${error.message}); the tables hold its numbers.`;
    }
    document.documentElement.dataset.failed = error.message;
  });
})();
