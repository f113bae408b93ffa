# SPDX-License-Identifier: Apache-2.0
"""Tables as text."""

import html
import re

import keras
import numpy as np
import pytest

import tfmot_atmc as atmc
from tfmot_atmc.utils.shown import Shown
from tfmot_atmc.utils.tables import WIDTH, made_table, table_text


def test_numbers_stand_right_under_their_heads_and_words_left():
    rows = [("conv", 1200, "12.5%", None), ("dense layer", 64, "9.1%", 0.25)]
    assert table_text(("layer", "bytes", "share", "loss"), rows).splitlines() == [
        "layer        bytes  share    loss",
        "conv         1,200  12.5%       -",
        "dense layer     64   9.1%  0.2500",
    ]


def test_a_table_is_never_wider_than_a_hundred_columns_and_loses_no_text():
    rows = [("block/" * 30 + "kernel", 5, "[markup]"), ("b", 7, "")]
    text = table_text(("tensor", "nonzeros", "why"), rows)
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    assert "".join(text.split()).count("block/") >= 25 and "[markup]" in text
    assert "[" not in made_table(("a",), [("b",)]).columns[0].justify


def test_a_table_without_rows_is_its_head():
    assert table_text(("a", "b"), []) == "a  b"


class Told(Shown):
    def _parts(self):
        return ["a < b", (("name", "bytes"), [("<i>", 1024), ("b", None)]), "Warning: odd"]


def test_a_report_shows_the_same_in_a_terminal_and_in_a_notebook():
    lines = ["a < b", "name  bytes", "<i>   1,024", "b         -", "Warning: odd"]
    assert str(Told()).splitlines() == lines
    page = Told()._repr_html_()
    assert "a &lt; b" in page and page.count("<tr>") == 3 and "&lt;i&gt;" in page
    assert re.search(r'text-align:right[^>]*">1,024<', page)
    assert re.search(r'color:#b5442e[^>]*">Warning: odd<', page)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each kind."""
    folder = tmp_path_factory.mktemp("reports")
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(n, name=f"d{n}") for n in (12, 3)]
    model = keras.Sequential([keras.Input((6,)), *dense])
    x, y = np.random.default_rng(0).random((8, 6), "float32"), np.arange(8) % 3
    small = atmc.compress(model, "atmc", ratio=0.3)
    plain = atmc.strip_compression(small)
    fgsm = atmc.attacks.FGSM(epsilon=0.1)
    radii = [0.0, 0.1]
    return {
        "compression": small.compression_report(),
        "deployment": atmc.deploy(small),
        "slimming": atmc.slimming.compare_models(plain, atmc.slim_model(plain)),
        "export": atmc.export_tflite(plain, folder / "m.tflite", inputs=x, measure_latency=False),
        "archive": atmc.export.pack_archive(folder / "m.tflite", folder / "m.atmc"),
        "robustness": atmc.evaluate_robustness(plain, (x, y), attacks=fgsm, verbose=0),
        "curve": atmc.evaluation.robustness_curve(
            plain, (x, y), attack="fgsm", epsilons=radii, checks=False, verbose=0
        ),
        "c": atmc.export_c(plain, folder / "m.c", values="float32", inputs=x),
    }


def test_every_report_is_a_table_in_a_notebook(reports):
    for name, report in reports.items():
        page = report._repr_html_()
        words = set(re.findall(r"[\w.,%]+", html.unescape(re.sub("<[^>]+>", " ", page))))
        missing = set(re.findall(r"[\d.,%]+", str(report))) - {
            number for word in words for number in re.findall(r"[\d.,%]+", word)
        }
        assert "<table" in page and not missing, (name, missing)
