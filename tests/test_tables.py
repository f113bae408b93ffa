# SPDX-License-Identifier: Apache-2.0
"""Tables as text."""

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
