#include "src/report/html.h"

namespace nibble {

// Series colours are Okabe and Ito's, which stay apart for colour-blind readers, with grey for the
// baseline; dark mode lightens the dark ones.
std::string_view ReportStyle() {
  return R"css(
:root {
  --paper: #fff; --ink: #1c1e21; --quiet: #5c636b; --rule: #e3e5e8; --grid: #e9ebee;
  --axis: #8a9099; --wash: #f6f7f8; --band: #e8f3ec; --link: #0b5394;
  --s0: #55595f; --s1: #d55e00; --s2: #0072b2; --s3: #009e73; --s4: #cc79a7; --s5: #b88700;
  --s6: #3b9cd0; --s7: #7a4fa3;
  --firm: #00795a; --provisional: #a86400; --none: #b03a2e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e4e6e9; --quiet: #9aa1a9; --rule: #2e3237; --grid: #2a2e33;
    --axis: #6d747d; --wash: #1e2125; --band: #1b2c25; --link: #7db7f0;
    --s0: #a9afb7; --s1: #f0813a; --s2: #4aa8e0; --s3: #2fc397; --s4: #dd97bd; --s5: #e0ac2b;
    --s6: #7cc4ec; --s7: #b08ad6;
    --firm: #3cc39a; --provisional: #e3a548; --none: #ea8177;
  }
}
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }

* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums lining-nums;
}
main { max-width: 892px; margin: 0 auto; padding: 40px 16px 80px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.015em; margin: 0 0 18px;
  overflow-wrap: anywhere; }
h2 { font-size: 22px; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 12px;
  overflow-wrap: anywhere; }
h3 { font-size: 14px; margin: 18px 0 4px; }
p, li { max-width: 72ch; overflow-wrap: break-word; }
p { margin: 0 0 12px; }
section { margin-top: 56px; }
ul { margin: 0 0 12px; padding-left: 20px; }
li { margin: 0 0 6px; }
.kicker { color: var(--quiet); font-size: 13px; letter-spacing: 0.04em; margin-bottom: 10px; }
.summary { font-size: 18px; line-height: 1.55; }

.verdict { margin: 28px 0 32px; padding: 20px 22px 16px; background: var(--wash);
  border-left: 4px solid var(--v); }
.verdict.firm { --v: var(--firm); }
.verdict.provisional { --v: var(--provisional); }
.verdict.none { --v: var(--none); }
.verdict .label { color: var(--v); font-size: 13px; font-weight: 600; margin: 0 0 4px; }
.verdict h2 { margin-bottom: 8px; }
.verdict .scroll { margin-top: 16px; }
.cautions { margin-top: 36px; }

.scroll { overflow-x: auto; margin: 0 0 20px; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { --sheet: var(--paper); border-collapse: collapse; font-size: 13.5px; line-height: 1.4;
  min-width: 100%; }
caption { text-align: left; color: var(--quiet); padding: 0 0 8px; font-size: 13.5px; }
caption b { color: var(--ink); }
th, td { padding: 5px 0 5px 15px; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--axis); }
tbody th { font-weight: 500; white-space: nowrap; }
thead th.n { min-width: 4.5em; }
thead th:first-child, tbody th { position: sticky; left: 0; background: var(--sheet); }
.n { text-align: right; }
td.n { white-space: nowrap; }
tbody tr.marked th, tbody tr.marked td { font-weight: 650; background: var(--wash); }
.verdict table { --sheet: var(--wash); }
table.facts thead { display: none; }
table.facts tbody th { white-space: normal; position: static; }
.fact-tables { display: grid; gap: 8px 32px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); align-items: start; }
table.facts th { width: 42%; color: var(--quiet); font-weight: 400; padding-right: 12px; }
table.facts td { overflow-wrap: anywhere; padding-left: 0; }
table.facts tbody tr:first-child th, table.facts tbody tr:first-child td {
  border-top: 1px solid var(--axis); }

figure { margin: 32px 0 44px; }
.figure-title { font-size: 16px; margin: 0 0 8px; }
figcaption { color: var(--quiet); font-size: 14px; line-height: 1.5; max-width: 80ch;
  margin: 10px 0 8px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0;
  margin: 0 0 12px; font-size: 13.5px; }
.legend li { display: flex; align-items: center; gap: 6px; margin: 0; overflow-wrap: anywhere; }
.legend .apart { margin-left: 12px; }
.part { width: 16px; height: 12px; background: var(--axis); display: inline-block; }
.part.striped { background: repeating-linear-gradient(135deg, var(--axis) 0 2.5px,
  var(--paper) 2.5px 4.5px); }
.part.pale { background: none; border: 1px solid var(--axis); position: relative; }
.part.pale::after { content: ""; position: absolute; inset: 0; background: var(--axis);
  opacity: 0.28; }
.panels { display: grid; gap: 24px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.drawing svg { display: block; width: 100%; height: auto; overflow: visible; }
.panel .drawing:not(.wide):not(.narrow) { max-width: 430px; }
.narrow { display: none; }
details { font-size: 14px; }
summary { cursor: pointer; color: var(--link); width: fit-content; padding: 4px 0; }
details .scroll { margin-top: 8px; }

svg text { font-family: inherit; fill: var(--ink); }
.t { font-size: 12px; } .small { font-size: 10.5px; } .bold { font-weight: 600; }
.muted { fill: var(--quiet) !important; }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); } .rule { stroke: var(--rule); }
.level { stroke: var(--ink); stroke-dasharray: 4 3; stroke-width: 1; opacity: 0.75; }
.band { fill: var(--band); }
.paper { fill: var(--paper); }
.fill { fill: var(--c); } .tint { fill: var(--c); fill-opacity: 0.28; stroke: var(--c);
  stroke-width: 0.75; }
.stroke { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.limit { stroke-width: 1.25; stroke-dasharray: 5 4; }
.interval { stroke: var(--c); stroke-width: 1.75; opacity: 0.8; }
.whisker { stroke: var(--ink); stroke-width: 1; opacity: 0.8; }

@media screen and (max-width: 640px) {
  main { padding: 24px 16px 56px; }
  h1 { font-size: 27px; }
  .summary { font-size: 16.5px; }
  .verdict { padding: 16px 14px 10px; margin-left: -4px; margin-right: -4px; }
  .wide { display: none; }
  .narrow { display: block; }
}
@page { margin: 16mm 14mm; }
@media print {
  body { font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 22pt; } h2 { font-size: 14pt; }
  section { margin-top: 26pt; }
  figure { margin: 14pt 0 20pt; }
  h2, h3, .figure-title, .legend, caption { break-after: avoid; }
  .drawing, tr, .verdict h3 { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; } caption, figcaption { font-size: 9pt; }
  th, td { padding-left: 7pt; padding-top: 2pt; padding-bottom: 2pt; }
  td.n { white-space: normal; }
  summary { display: none; }
  /* On paper the tables are open; what is closed on the screen stays closed there. */
  details::details-content { content-visibility: visible; }
  .summary { font-size: 11.5pt; }
  .panels { grid-template-columns: 1fr 1fr; }
  .drawing svg { max-height: 8.2in; }
}
)css";
}

}  // namespace nibble
