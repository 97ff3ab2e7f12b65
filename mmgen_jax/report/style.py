"""The one style sheet of a report: light and dark, wide and narrow."""

STYLE = """
:root {
  --paper: #faf9f7; --card: #ffffff; --line: #e5e2dc;
  --ink: #1d1e20; --soft: #5c6067; --faint: #80858d;
  --accent: #2b59c3; --wash: 43 89 195; --bad: #c2402f;
  --c0: #2b59c3; --c1: #c2622b; --c2: #2f8a5b;
  --c3: #8a4fb0; --c4: #a8861b; --c5: #6b7280;
  --tile: 66px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131416; --card: #1b1d20; --line: #2d3034;
    --ink: #ececee; --soft: #a3a8b0; --faint: #7f858e;
    --accent: #8fb2ff; --wash: 120 160 255; --bad: #ff8a78;
    --c0: #8fb2ff; --c1: #f2a272; --c2: #72cf9f;
    --c3: #cf9df0; --c4: #e0c264; --c5: #9aa1ac;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 56px; }
footer {
  padding-top: 40px; padding-bottom: 56px; color: var(--faint); font-size: 13px;
}
h1 {
  font-size: clamp(28px, 5vw, 42px); line-height: 1.12; letter-spacing: -0.022em;
  margin: 4px 0 12px; font-weight: 680; text-wrap: balance;
}
h2 { font-size: 23px; letter-spacing: -0.014em; margin: 0 0 6px; font-weight: 660; }
h3 { font-size: 15px; margin: 0; font-weight: 640; }
p { margin: 0 0 12px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { padding-top: 56px; scroll-margin-top: 8px; }
code, pre {
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
code { overflow-wrap: anywhere; white-space: normal; }
pre { overflow-x: auto; margin: 0; padding: 4px 16px 14px; }

.over { color: var(--accent); font-weight: 620; font-size: 14px; margin: 0; }
.lead { color: var(--soft); max-width: 72ch; margin: 0 0 20px; }
.faint { color: var(--faint); font-weight: 400; }
.facts {
  color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 20px;
  margin: 0; padding: 0; list-style: none; font-size: 14.5px;
}
.facts b { color: var(--ink); font-weight: 600; }
.note {
  border-left: 3px solid var(--accent); padding: 8px 14px; background: var(--card);
  border-radius: 0 8px 8px 0; margin: 20px 0 0; color: var(--soft);
}
nav {
  display: flex; flex-wrap: wrap; gap: 6px 20px; margin-top: 28px; padding: 12px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
  font-size: 14.5px;
}

.figures {
  display: grid; gap: 12px; margin-top: 28px;
  grid-template-columns: repeat(auto-fill, minmax(225px, 1fr));
}
.figure, .direction, .charts figure, .scroll, details {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
.figure { padding: 14px 16px 12px; }
.figure.wide { grid-column: span 2; }
.figure .what { font-size: 14px; color: var(--soft); }
.figure .number {
  font-size: 38px; line-height: 1.15; font-weight: 680; letter-spacing: -0.03em;
  margin: 2px 0 6px;
}
.figure .number small {
  font-size: 19px; font-weight: 560; color: var(--soft); letter-spacing: 0;
  margin-left: 2px;
}
.figure .how {
  font-size: 12.5px; color: var(--faint); line-height: 1.4; margin-top: 8px;
}
.gauge { display: block; width: 100%; height: 8px; }
.gauge .track { fill: var(--line); }
.gauge .level { fill: var(--accent); }
.gauge .span { fill: var(--ink); opacity: 0.75; }

.direction { padding: 14px 16px 16px; margin-top: 14px; }
.top {
  display: flex; flex-wrap: wrap; justify-content: space-between;
  align-items: baseline; gap: 2px 16px; margin-bottom: 12px;
}
.top span { color: var(--soft); font-size: 14px; }
.top b { color: var(--ink); }
.pairs {
  display: grid; gap: 12px 10px;
  --wide: calc(var(--tiles) * (var(--tile) + 6px) + 18px);
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--wide)), 1fr));
}
.pairs.why { grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
.why .pair { padding: 4px; }
.why .said { flex-basis: 100%; font-size: 13px; color: var(--soft); }
.pair { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; }
.arrow { color: var(--faint); flex: none; font-size: 15px; }
.tile {
  flex: none; width: var(--tile); height: var(--tile);
  border-radius: 7px; overflow: hidden;
  display: flex; align-items: center; justify-content: center;
}
.tile img {
  width: 100%; height: 100%; object-fit: cover; image-rendering: pixelated;
  display: block;
}
.words {
  flex: 1 0 var(--tile); width: auto; max-width: 104px;
  height: auto; min-height: var(--tile); max-height: 144px;
  overflow-y: auto; align-items: safe center;
  background: var(--paper); border: 1px solid var(--line); padding: 3px;
  font-size: 11.5px; line-height: 1.25; text-align: center; overflow-wrap: anywhere;
}
.wrong { outline: 2px dashed var(--bad); outline-offset: 1.5px; }
.pair.wrong { width: fit-content; border-radius: 7px; outline-offset: 2px; }
.key {
  display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  vertical-align: -1px; margin: 0 6px 0 4px;
}
.strips { overflow-x: auto; }
.strip { display: flex; gap: 6px; align-items: center; margin-top: 6px; }
.strip .words { flex: none; width: var(--tile); }  /* above its column */
.when {
  flex: none; width: 58px; padding-right: 8px; color: var(--soft); font-size: 13px;
  position: sticky; left: 0; z-index: 1; background: var(--card);
  align-self: stretch; display: flex; align-items: center; justify-content: flex-end;
}

.charts {
  display: grid; gap: 14px; margin-top: 14px;
  grid-template-columns: repeat(auto-fill, minmax(270px, 1fr));
}
.charts.wide { grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
.charts figure { margin: 0; padding: 12px 12px 8px; min-width: 0; }
figcaption {
  display: flex; justify-content: space-between; gap: 10px; font-size: 13.5px;
  margin: 0 4px 4px;
}
figcaption span { color: var(--soft); white-space: nowrap; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-size: 10.5px; fill: var(--faint); }
.chart .rule { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.chart .raw { stroke-width: 1; opacity: 0.3; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px;
  color: var(--soft); margin: 4px 4px 2px;
}

.scroll { overflow-x: auto; margin-top: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; padding: 12px 16px 4px; font-weight: 640; font-size: 15px; }
caption small { font-weight: 400; color: var(--soft); font-size: 13.5px; }
th, td {
  padding: 7px 16px; text-align: left; white-space: nowrap; vertical-align: top;
}
thead th {
  color: var(--soft); font-weight: 560; font-size: 13px;
  border-bottom: 1px solid var(--line);
}
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 540; }
td small, tbody th small { display: block; color: var(--faint); font-weight: 400; }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 240px; }
.heat { background: rgb(var(--wash) / var(--h)); }
.heat small { color: var(--soft); }
details { margin-top: 14px; }
details .scroll { border: 0; margin: 0; }
details .charts { padding: 0 14px 14px; margin-top: 2px; }
summary { cursor: pointer; padding: 11px 16px; font-weight: 600; font-size: 15px; }

@media (max-width: 620px) {
  :root { --tile: 60px; }
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 32px; }
  section { padding-top: 40px; }
  .figures { grid-template-columns: 1fr 1fr; gap: 10px; }
  .figure { padding: 11px 12px 10px; }
  .figure .number { font-size: 30px; }
  .pairs .pair:nth-child(n + 9) { display: none; }
  th, td { padding: 6px 12px; }
}
@media print {
  nav { display: none; }
}
"""
