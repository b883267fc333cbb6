"""The page around the report, and its style: for light and dark themes, paper, and small screens."""

from typing import Final

PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1a1f26; --quiet: #58626f; --line: #e1e5ea; --axis: #9aa4b0;
  --answers: #3572b8; --first: #6aa0da; --errors: #cf3f2e; --limited: #b26f00; --queued: #8592a1;
  --paused: #f0bb49; --point: #1a1f2614;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --card: #1a2027; --text: #e5e9ee; --quiet: #9ba7b4; --line: #2b333d; --axis: #6c7885;
    --answers: #5c9fe6; --first: #a9cdf5; --errors: #ff7b69; --limited: #e8b04a; --queued: #6b7888;
    --paused: #7a5a14; --point: #ffffff1f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .75rem; }
h3 { font-size: .95rem; line-height: 1.3; margin: 0; }
h1, dd, th bdi, td p { overflow-wrap: anywhere; }
p, dl, dd, figure { margin: 0; }
small { white-space: nowrap; font-size: .8em; font-weight: 400; color: var(--quiet); }
code { font: .9em ui-monospace, monospace; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.25rem; }
section, header { margin-bottom: 1.1rem; }
h2 + .note { margin: -.5rem 0 .75rem; }
.when, .note, .none, .quiet, dt, .key, .ids { color: var(--quiet); }
.note, .key, .ids, caption { font-size: .85rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin-top: 1rem; }
.facts div { min-width: 0; }
dt { font-size: .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .9rem 1.25rem; }
.figures dd { font-size: 1.35rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.parts { display: block; width: 100%; height: 1.1rem; border-radius: .25rem; }
.parts + .key { margin: .4rem 0 1rem; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; }
.key svg { width: .75em; height: .75em; margin-right: .4em; }
.answers { fill: var(--answers); } .errors { fill: var(--errors); } .limited { fill: var(--limited); }
.queued { fill: var(--queued); } .first { fill: var(--first); } .rest { fill: none; }
.paused { fill: var(--paused); shape-rendering: crispEdges; }
figure + figure { margin-top: 1.25rem; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem 1.25rem; margin-bottom: .5rem; }
figcaption .note { flex-basis: 100%; }
.plot { display: grid; grid-template: auto var(--high) auto / 2.9rem minmax(0, 1fr); --high: 7rem; }
.tall { --high: 10rem; } .low { --high: 3.5rem; }
.plot svg { grid-area: 2 / 2; width: 100%; height: 100%; display: block; }
.up { grid-area: 2 / 1; } .above { grid-area: 1 / 2; height: 1.3rem; } .below { grid-area: 3 / 2; height: 2.5rem; }
.beside .below { height: 1.4rem; }
.up, .above, .below { position: relative; font-size: .75rem; line-height: 1.3; color: var(--quiet); }
.up, .above, .below, td, .percentiles { font-variant-numeric: tabular-nums; }
.plot span { position: absolute; white-space: nowrap; }
.up span { right: .5rem; transform: translateY(50%); }
.above span { bottom: .1rem; } .below span { top: .3rem; }
.above span, .below span { transform: translateX(-50%); text-align: center; }
.plot .first { transform: none; text-align: left; } .plot .last { transform: translateX(-100%); text-align: right; }
.plot path { vector-effect: non-scaling-stroke; }
.grid { stroke: var(--line); fill: none; } .foot { stroke: var(--axis); fill: none; }
.percentile { stroke: var(--text); stroke-dasharray: 3 3; fill: none; }
.silence { stroke: var(--axis); stroke-dasharray: 2 3; fill: none; }
.point { fill: transparent; } .point:hover { fill: var(--point); }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) 9.5rem; gap: 1.5rem; align-items: center; }
.percentiles div { display: flex; justify-content: space-between; border-bottom: 1px solid var(--line); }
.percentiles dd { font-weight: 600; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 500; font-size: .8rem; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 8.5rem; }
.number { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
td bdi, th bdi, dd bdi { overflow: clip; }
td .parts { height: .6rem; min-width: 6rem; margin-top: .45rem; border-radius: 0; }
.over > * { border-bottom: 0; padding-bottom: .1rem; }
.over + tr td { padding-top: 0; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--quiet); font-size: .85rem; }
details .table { max-height: 24rem; overflow-y: auto; margin-top: .5rem; }
:focus-visible { outline: 2px solid var(--answers); outline-offset: 2px; }
@media (max-width: 600px) {
  main { padding: 1.25rem .75rem 3rem; }
  section { padding: .9rem .85rem; }
  .wide { display: none; }
  .beside { grid-template-columns: minmax(0, 1fr); gap: .5rem; }
  .figures { grid-template-columns: repeat(2, 1fr); }
}
@media print {
  :root { color-scheme: light; }
  body, section { background: none; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; }
  figure, tr, .figures { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .table { overflow: visible; }
  details { display: none; }
}
"""
