# SPDX-License-Identifier: Apache-2.0
"""Cards of reference models as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["render_card", "render_table"]


def render_table(cards: Iterable[dict[str, Any]]) -> str:
    """Returns a Markdown table with one line a model.

    Args:
        cards: what `card` returns, of each.
    """
    attacks = ("PGD-16", "PGD-40", "AutoAttack")
    rows = []
    for card in cards:
        accuracy, files = card["accuracy"], card["files"]
        rows.append(
            (
                f"`{card['name']}`",
                f"{card['network']['nonzeros']:,}",
                *(_short(accuracy.get(kind)) for kind in ("clean", *attacks)),
                f"{files['tflite']['bytes']:,}",
                f"{files['keras']['bytes']:,}",
            )
        )
    titles = ("name", "nonzeros", "clean", *attacks, ".tflite bytes", ".keras bytes")
    return _table(titles, rows)


def render_card(card: dict[str, Any]) -> str:
    """Returns a card as Markdown.

    Args:
        card: what `tfmot_atmc.references.card` returns.

    Example:

    >>> from tfmot_atmc import references
    >>> print(render_card(references.card("lenet-mnist-0.01")).splitlines()[0])
    # lenet-mnist-0.01
    """
    data, network, recipe = card["data"], card["network"], card["recipe"]
    parts = [
        f"# {card['name']}",
        card["summary"],
        "## Accuracy",
        _accuracy(card),
        *(f"Warning of the evaluation: {text}" for text in card["warnings"]),
        "## Files",
        _files(card),
        "## Data",
        f"{data['name']}: {data['training']:,} images for training, {data['held_out']:,} held out "
        f"from them, {data['test']:,} for tests. {data['preparation']}",
        "## Network",
        f"{network['description']} Of {network['dense_kernel_weights']:,} kernel weights, "
        f"{network['trained_nonzeros']:,} nonzeros were trained (ratio {network['ratio']}); the "
        f"kernels in the files have {network['nonzeros']:,}.",
        _table(
            ("kernel", "shape", "nonzeros", "distinct nonzero values"),
            [
                (k["name"], " x ".join(map(str, k["shape"])), f"{k['nonzeros']:,}", k["values"])
                for k in network["kernels"]
            ],
        ),
        "## Recipe",
        _stages(recipe["stages"]),
        recipe["after_training"],
        _selection(card["selection"]),
        "## Rebuild",
        f"    {card['rebuild']}",
        card["reproducibility"],
        _versions(card["versions"]),
        "## Use and limits",
        card["intended_use"],
        "\n".join(f"- {limit}" for limit in card["limits"]),
        f"Licence: {card['licence']}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracy(card: dict[str, Any]) -> str:
    rows = []
    for name, found in card["accuracy"].items():
        low, high = (f"{100 * end:.1f}" for end in found["interval"])
        rows.append(
            (
                name,
                found["how"],
                f"{100 * found['accuracy']:.2f}%",
                f"{low} to {high}",
                f"{found['n']:,}",
            )
        )
    ball = f"Attacks: l-infinity, epsilon {card['epsilon']:.4f} ({card['epsilon_255']:g}/255)"
    return (
        f"{ball} in input units. All figures are of the `.tflite` file; {card['agreement']}\n\n"
        + _table(("", "how", "accuracy", "95% interval", "test images"), rows)
    )


def _files(card: dict[str, Any]) -> str:
    rows = [
        (f"`{found['file']}`", f"{found['bytes']:,}", f"`{found['sha256']}`")
        for found in card["files"].values()
    ]
    return _table(("file", "bytes", "SHA-256"), rows)


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    titles = ("stage", "method", "epochs", "attack", "step rule", "objective", "optimizer", "rate")
    rows = [
        (
            stage["name"],
            stage["method"],
            stage["epochs"],
            stage["attack"],
            stage["rule"],
            stage["objective"],
            stage["optimizer"],
            f"{stage['learning_rate']:g}",
        )
        for stage in stages
    ]
    first = stages[0]
    return (
        _table(titles, rows)
        + f"\n\nBatches of {first['batch_size']}, seed {first['seed']}, cosine decay. Training "
        f"attacks have epsilon {first['epsilon_255']:g}/255 too, and start at random."
    )


def _selection(selection: dict[str, Any]) -> str:
    rows = [
        (
            found["stage"],
            found["values"],
            f"{100 * found['clean']:.2f}%",
            f"{100 * found['PGD-40']:.2f}%",
            f"{found['tflite_bytes']:,}",
            "yes" if found["chosen"] else "",
        )
        for found in selection["candidates"]
    ]
    titles = ("stage", "values", "clean", "PGD-40", ".tflite bytes", "chosen")
    return "\n\n".join((selection["rule"], _table(titles, rows), _cost(selection["candidates"])))


def _cost(candidates: Sequence[dict[str, Any]]) -> str:
    """What the chosen one lost and saved against the most robust one that was not rounded."""
    chosen = next(found for found in candidates if found["chosen"])
    exact = [found for found in candidates if found["values"] == "as trained"]
    before = max(exact, key=lambda found: found["PGD-40"])
    clean, robust = (100 * (chosen[kind] - before[kind]) for kind in ("clean", "PGD-40"))
    saved = 1 - chosen["tflite_bytes"] / before["tflite_bytes"]
    return (
        f"Against the most robust one as trained ({before['stage']}), clean accuracy changed by "
        f"{clean:+.2f} and accuracy under PGD-40 by {robust:+.2f} points; {saved:.0%} of the file "
        "are saved."
    )


def _versions(versions: dict[str, str]) -> str:
    return "Made with " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."


def _short(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{100 * found['accuracy']:.1f}%"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
