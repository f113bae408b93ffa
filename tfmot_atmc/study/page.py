# SPDX-License-Identifier: Apache-2.0
"""One HTML page with the tables and figures of a study, which needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tfmot_atmc.study.plots import groups
from tfmot_atmc.study.progress import duration
from tfmot_atmc.study.results import COLUMNS
from tfmot_atmc.utils.files import write_bytes

__all__ = ["write_page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #222; background: #fff; }
h1, h2, h3 { font-weight: 600; } h2 { margin-top: 2.2rem; } figure { margin: 1rem 0; }
img { max-width: 100%; } figcaption, .note { color: #666; font-size: .9em; }
.wide { overflow-x: auto; max-height: 32rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e4e4e4; }
th { position: sticky; top: 0; background: #f3f3f0; cursor: pointer; user-select: none; }
th.text, td.text { text-align: left; } .sure { font-weight: 600; } .bad { color: #b5442e; }
input { margin: .4rem 0; padding: .2rem .4rem; } pre { background: #f6f6f3; padding: .8rem; }
"""

# A click on a heading sorts by that column, and once more turns it round.
_SCRIPT = """
document.querySelectorAll("th").forEach(function (head) {
  head.addEventListener("click", function () {
    var body = head.closest("table").tBodies[0];
    var up = head.dataset.up = head.dataset.up === "1" ? "0" : "1";
    var at = head.cellIndex, sign = up === "1" ? 1 : -1;
    var value = function (row) {
      var cell = row.cells[at], number = parseFloat(cell.dataset.value);
      return isNaN(number) ? cell.textContent : number;
    };
    Array.from(body.rows).sort(function (a, b) {
      var x = value(a), y = value(b);
      if (typeof x !== typeof y) { return typeof x === "number" ? -1 : 1; }
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
    }).forEach(function (row) { body.appendChild(row); });
  });
});
document.querySelectorAll("input").forEach(function (field) {
  field.addEventListener("input", function () {
    var words = field.value.toLowerCase().split(/\\s+/);
    Array.from(field.nextElementSibling.querySelector("tbody").rows).forEach(function (row) {
      var text = row.textContent.toLowerCase();
      row.hidden = !words.every(function (word) { return text.includes(word); });
    });
  });
});
"""

Cell = tuple[str, Any]  # what is shown, and the value to sort by (None for text)


def write_page(
    results: Mapping[str, Any],
    figures: Mapping[str, Path],
    times: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Writes `page.html`, with everything in it.

    Args:
        results: what `results.json` holds.
        figures: the figures' files by title.
        times: what `times.json` holds.
        out: folder of the study.
    """
    name = html.escape(results["name"])
    parts = [
        f"<h1>{name}</h1>",
        _overview(results, times),
        _failures(results["failures"]),
        *(_figure(title, path) for title, path in figures.items()),
        *(_summary(title, entries) for title, entries in groups(results["summary"]).items()),
        _comparisons(results["comparisons"]),
        _rows(results["rows"]),
        "<h2>Description</h2>",
        f"<pre>{html.escape(yaml.safe_dump(results['description'], sort_keys=False))}</pre>",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + f"\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )
    write_bytes(Path(out) / "page.html", page.encode())


def _overview(results: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    rows = results["rows"]
    versions = sorted({row["versions"] for row in rows})
    models = len({row["job"] for row in rows})
    about = results["description"]
    return (
        f"<p>{models} models, {len(rows)} accuracies. Dense start {about['dense_epochs']} epochs, "
        f"then {about['epochs']} epochs of pruning (phases: {about['phases']}), for every method "
        f"alike. Time of all processes together: {duration(times['seconds'])}.</p>"
        + "".join(f'<p class="note">{html.escape(version)}</p>' for version in versions)
    )


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    rows = [[_text(f["job"]), _text(f["error"] or "not run yet")] for f in failures]
    return f'<h2 class="bad">{len(failures)} jobs are not done</h2>' + _table(("job", "why"), rows)


def _figure(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(title)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _summary(title: str, entries: Sequence[Mapping[str, Any]]) -> str:
    attacks = list(dict.fromkeys(entry["attack"] for entry in entries))
    cells = {(e["variant"], e["ratio"], e["attack"]): e for e in entries}
    rows = []
    for name, ratio in dict.fromkeys((e["variant"], e["ratio"]) for e in entries):
        mine = [cells.get((name, ratio, attack)) for attack in attacks]
        first = next(entry for entry in mine if entry is not None)
        row = [_text(name), _number(ratio, "g"), _number(first["paper_ratio"], ".5f")]
        row += [_number(first["nonzeros"], ",.0f"), _number(first["paper_bytes"], ",.0f")]
        row += [_number(first["epochs"], "d"), _number(first["seeds"], "d")]
        rows.append([*row, *(_spread(entry) for entry in mine)])
    columns = ("method", "ratio", "size ratio", "nonzeros", "bytes", "epochs", "seeds", *attacks)
    return (
        f"<h2>{html.escape(title)}</h2>"
        '<p class="note">Accuracies in percent, means over seeds [least, greatest]. Size ratio and '
        "bytes by the paper's metric: values and codebooks, positions not counted. Epochs are "
        "those after the dense start.</p>" + _table(columns, rows)
    )


def _spread(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return "", None
    shown = f"{100 * entry['mean']:.1f}"
    if entry["seeds"] > 1:
        shown += f" [{100 * entry['min']:.1f}, {100 * entry['max']:.1f}]"
    return shown, entry["mean"]


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    if not comparisons:
        return ""
    rows = []
    for entry in comparisons:
        where = (entry["model"], entry["data"], entry["training"])
        row = [*map(_text, where), _text(f"{entry['first']} - {entry['second']}")]
        everywhere = entry["ratio"] is None  # sorts before the single ratios
        row += [("all", 0.0) if everywhere else _number(entry["ratio"], "g")]
        row += [_text(entry["attack"]), _number(entry["n"], "d")]
        row += [_number(100 * entry["mean"], "+.2f")]
        if entry["low"] is None:
            row += [("", None), ("", None), _text("one seed only")]
        else:
            row += [_number(100 * entry[end], "+.2f") for end in ("low", "high")]
            sure = entry["low"] > 0 or entry["high"] < 0
            row.append(_text("differs" if sure else "no difference seen"))
        rows.append(row)
    columns = ("model", "data", "training", "difference", "ratio", "attack", "seeds", "mean")
    return (
        "<h2>Paired comparisons</h2>"
        '<p class="note">Differences of accuracy in points, the same seed for both, with the 95% '
        "interval of Student's t over seeds. Many comparisons are made: one in twenty intervals "
        "misses zero by chance alone.</p>" + _table((*columns, "low", "high", ""), rows)
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [c for c in COLUMNS if c not in ("job", "versions")]
    table = []
    for row in rows:
        cells = []
        for column in columns:
            value = row[column]
            if isinstance(value, float):
                cells.append(_number(value, ".5g"))
            elif isinstance(value, int):
                cells.append(_number(value, ","))
            else:
                cells.append(_text("" if value is None else str(value)[:80]))
        table.append(cells)
    return (
        f"<h2>All {len(rows)} accuracies</h2>"
        '<input placeholder="words that a row must hold" size="40">' + _table(columns, table)
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    listed = list(rows)
    textual = [bool(listed) and listed[0][i][1] is None for i in range(len(columns))]
    kinds = [' class="text"' if text else "" for text in textual]
    head = "".join(
        f"<th{kind}>{html.escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, kinds, row))}</tr>" for row in listed)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(kind: str, cell: Cell) -> str:
    shown, value = cell
    sorted_by = "" if value is None else f' data-value="{value!r}"'
    return f"<td{kind}{sorted_by}>{html.escape(shown)}</td>"


def _text(value: Any) -> Cell:
    return str(value), None


def _number(value: float, how: str) -> Cell:
    return format(value, how), value
