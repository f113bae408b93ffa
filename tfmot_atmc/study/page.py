# SPDX-License-Identifier: Apache-2.0
"""One HTML page with the tables and figures of a study, which needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from tfmot_atmc.study.plots import groups
from tfmot_atmc.study.progress import duration
from tfmot_atmc.study.results import COLUMNS
from tfmot_atmc.utils.files import write_bytes

__all__ = ["write_page"]

_TEMPLATE = "page.html.jinja"


class _Cell(NamedTuple):
    shown: str
    value: Any = None  # to sort by; None for text


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
    text = resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8")
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    columns = [column for column in COLUMNS if column not in ("job", "versions")]
    page = strict.from_string(text).render(
        results=results,
        models=len({row["job"] for row in results["rows"]}),
        time=duration(times["seconds"]),
        versions=sorted({row["versions"] for row in results["rows"]}),
        failures=[
            [_Cell(f["job"]), _Cell(f["error"] or "not run yet")] for f in results["failures"]
        ],
        figures={
            title: base64.b64encode(path.read_bytes()).decode() for title, path in figures.items()
        },
        summaries=[_summary(*group) for group in groups(results["summary"]).items()],
        comparisons=[_comparison(entry) for entry in results["comparisons"]],
        columns=columns,
        rows=[[_plain(row[column]) for column in columns] for row in results["rows"]],
        description=yaml.safe_dump(results["description"], sort_keys=False),
    )
    write_bytes(Path(out) / "page.html", page.encode())


def _summary(
    title: str, entries: Sequence[Mapping[str, Any]]
) -> tuple[str, Sequence[str], list[list[_Cell]]]:
    """Returns the title, the columns and the rows of one table of means."""
    attacks = list(dict.fromkeys(entry["attack"] for entry in entries))
    cells = {(e["variant"], e["ratio"], e["attack"]): e for e in entries}
    rows = []
    for name, ratio in dict.fromkeys((e["variant"], e["ratio"]) for e in entries):
        mine = [cells.get((name, ratio, attack)) for attack in attacks]
        first = next(entry for entry in mine if entry is not None)
        row = [_Cell(name), _number(ratio, "g"), _number(first["paper_ratio"], ".5f")]
        row += [_number(first["nonzeros"], ",.0f"), _number(first["paper_bytes"], ",.0f")]
        row += [_number(first["epochs"], "d"), _number(first["seeds"], "d")]
        rows.append([*row, *(_spread(entry) for entry in mine)])
    columns = ("method", "ratio", "size ratio", "nonzeros", "bytes", "epochs", "seeds", *attacks)
    return title, columns, rows


def _spread(entry: Mapping[str, Any] | None) -> _Cell:
    if entry is None:
        return _Cell("")
    shown = f"{100 * entry['mean']:.1f}"
    if entry["seeds"] > 1:
        shown += f" [{100 * entry['min']:.1f}, {100 * entry['max']:.1f}]"
    return _Cell(shown, entry["mean"])


def _comparison(entry: Mapping[str, Any]) -> list[_Cell]:
    row = [_Cell(entry[key]) for key in ("model", "data", "training")]
    row.append(_Cell(f"{entry['first']} - {entry['second']}"))
    everywhere = entry["ratio"] is None  # sorts before the single ratios
    row.append(_Cell("all", 0.0) if everywhere else _number(entry["ratio"], "g"))
    row += [_Cell(entry["attack"]), _number(entry["n"], "d")]
    row.append(_number(100 * entry["mean"], "+.2f"))
    if entry["low"] is None:
        return [*row, _Cell(""), _Cell(""), _Cell("one seed only")]
    row += [_number(100 * entry[end], "+.2f") for end in ("low", "high")]
    sure = entry["low"] > 0 or entry["high"] < 0
    return [*row, _Cell("differs" if sure else "no difference seen")]


def _plain(value: Any) -> _Cell:
    if isinstance(value, (int, float)):
        return _number(value, ".5g" if isinstance(value, float) else ",")
    return _Cell("" if value is None else str(value)[:80])


def _number(value: float, how: str) -> _Cell:
    return _Cell(format(value, how), value)
