# SPDX-License-Identifier: Apache-2.0
"""What the cards of the reference models say, and the documents written from them.

`reference_models.py` makes the models.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from documents import DOCUMENTS, ROOT, fill

from tfmot_atmc import references
from tfmot_atmc.utils.files import write_bytes

FILES = ROOT / "tfmot_atmc" / "models" / "files"

SUMMARY = (
    "LeNet for MNIST digits, trained under attack and compressed by ATMC (Gui et al., NeurIPS "
    "2019) to {percent:g}% of its kernel weights, with int8 values."
)
AFTER_TRAINING = (
    "After training, the kernels are multiplied out or left as products of two, whichever takes "
    "fewer bytes (`deploy`); each kernel is rounded to 8 bits, integers in [-127, 127] times one "
    "scale, and so is each bias; channels that change nothing are removed (`slim_model`). The "
    "`.tflite` file stores the codes and restores the same float32 weights, bit for bit."
)
RULE = (
    "The stage and the way of rounding are those that withstand PGD-40 best on held-out training "
    "images; test images took no part. Rounded files have about the same size, so size does not "
    "decide."
)
INTENDED_USE = (
    "A small, fixed network to test deployment, attacks and evaluation against, and a figure for "
    "other compressed networks to beat. It is no product for reading digits."
)
LIMITS = (
    "MNIST alone: centred 28 x 28 digits in [0, 1], light on dark. Other images get an answer as "
    "well, and a wrong one.",
    "Robustness is measured, not proven, within one l-infinity ball and on some of the test "
    "images; other attacks, norms and shifts of the data are open.",
    "PGD overstates the robustness of networks this sparse: AutoAttack leaves much less (see "
    "docs/results.md).",
    "Intervals are of the sampling of test images; one seed was trained.",
)
REPRODUCIBILITY = (
    "The same seed gives the same weights on the same machine with the same versions and threads; "
    "elsewhere sums are rounded differently and figures differ within the spread of seeds."
)
TAKEN_OVER = (
    " The stages were trained before, by the command given, and taken over; their settings are in "
    "the card's JSON file."
)


def stage_rows(start: Path, folder: Path, last: str) -> list[dict[str, Any]]:
    """What the cards say of each stage up to the last, from the records beside the weights."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    by_digest = {record["digest"]: record for record in records if "stage" in record}
    record: Any = next(record for record in by_digest.values() if record["stage"] == last)
    chain = []
    while record is not None:
        chain.insert(0, record)
        record = by_digest.get(record["start"])
    if chain[0]["stage"] != "dense" and (start / "dense.json").exists():
        chain.insert(0, json.loads((start / "dense.json").read_text()))
    return [_stage_row(record) for record in chain]


def _stage_row(record: dict[str, Any]) -> dict[str, Any]:
    attack, method = record["attack"], record["method"]
    config = attack["config"]
    bits = method["config"].get("bits")
    return {
        "name": record["stage"],
        "method": method["class_name"] + (f"-{bits}" if bits else ""),
        "epochs": record["epochs"],
        "attack": f"{attack['class_name']}-{config['steps']}",
        "rule": config["rule"] if "rule" in config else _step(config["step_size"]),
        "epsilon": config["epsilon"],
        "epsilon_255": round(255 * config["epsilon"], 4),
        "objective": record["objective"].strip("'"),
        "optimizer": record["optimizer"],
        "learning_rate": record["learning_rate"],
        "clipnorm": record["clipnorm"],
        "batch_size": record["batch_size"],
        "seed": record["seed"],
        "settings": {"method": method, "attack": attack},
    }


def _step(step_size: float | None) -> str:
    """The step of an attack without rules, ATTA."""
    return "epsilon / 2" if step_size is None else f"{step_size:.4g}"


def network_of(model: keras.Model, folder: Path, stage: str) -> dict[str, Any]:
    trained = keras.saving.load_model(folder / f"{stage}.keras", compile=False)
    report = trained.compression_report()
    kernels = [
        {
            "name": variable.path,
            "shape": list(variable.shape),
            "nonzeros": int(np.count_nonzero(value)),
            "values": int(np.unique(value[value != 0]).size),
        }
        for variable, value in zip(model.weights, model.get_weights(), strict=True)
        if value.ndim > 1
    ]
    return {
        "name": "lenet",
        "description": "Two 5 x 5 convolutions with max-pooling and no ReLU between them, two "
        "dense layers with a ReLU between them; logits for 10 digits.",
        "input_shape": list(model.input_shape[1:]),
        "num_classes": model.output_shape[-1],
        "dense_kernel_weights": report.dense_parameters,
        "trained_nonzeros": report.nonzeros,
        "nonzeros": sum(kernel["nonzeros"] for kernel in kernels),
        "kernels": kernels,
    }


def describe_file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"file": path.name, "bytes": len(content), "sha256": digest}


def write_documents() -> None:
    """Writes the cards as Markdown, and the table of the documents."""
    cards = [references.card(name) for name in references.names()]
    for card in cards:
        write_bytes(FILES / f"{card['name']}.md", references.render_card(card).encode())
    table = references.render_table(cards)
    for document in DOCUMENTS:
        text = fill(document.read_text(), "references", lambda _: table)
        write_bytes(document, text.encode())
