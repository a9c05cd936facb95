"""What rows cost: learned, kept in a file, and not mistaken for another machine's."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

import edge
from edge.engine.costs import DEPTHS, PassCosts
from edge.engine.costs_file import costs_path, read_shapes, write_shapes


def test_rows_that_were_not_seen_cost_what_such_rows_usually_do():
    costs = PassCosts()
    costs.record(4, 100, 0.0155)
    assert costs.seconds(1, 100) == pytest.approx(0.010)
    assert costs.seconds(8, 100) == pytest.approx(0.023)
    assert costs.seconds(32, 100) == pytest.approx(0.084)
    assert costs.is_fresh(4, 100) and not costs.is_fresh(1, 100) and not costs.is_fresh(4, 5000)
    for _ in range(101):
        costs.record(1, 100, 0.011)
    assert not costs.is_fresh(4, 100) and costs.is_fresh(1, 100)


def test_the_curve_is_what_the_single_numbers_are():
    costs = PassCosts([{2: 1.1, 8: 2.0}] + [{} for _ in DEPTHS])
    assert costs.curve(100) is None
    for rows, seconds in ((2, 0.012), (6, 0.020), (40, 0.1)):
        costs.record(rows, 100, seconds)
    curve = costs.curve(100)
    assert curve is not None and costs.curve(300) is curve
    wanted = {rows: costs.seconds(rows, 100) for rows in (*range(1, 3), 6, *range(40, 65))}
    assert {rows: curve.extra(rows, 0)[0] for rows in wanted} == pytest.approx(wanted)
    between = {3: 0.012 + 0.001, 4: 0.012 + 0.002, 23: 0.020 + 0.020}  # half of the rise on a line
    assert {rows: curve.extra(rows, 0)[0] for rows in between} == pytest.approx(between)
    assert curve.extra(500, 12) == pytest.approx([costs.seconds(500 + n, 100) for n in range(13)])
    assert len(curve.extra(700, 63)) == 64
    costs.record(4, 100, 0.050)  # a hiccup: more rows never cost less
    assert (np.diff(costs.curve(100).extra(1, 63)) >= 0).all()


def test_another_run_knows_what_one_has_learned(tmp_path):
    costs, path = PassCosts(), tmp_path / "costs" / "one.json"
    assert not costs.has_passes
    for rows, seconds in ((1, 0.010), (2, 0.011), (4, 0.016), (300, 0.9)):
        costs.record(rows, 2000, seconds)
    assert costs.has_passes
    write_shapes(path, costs.shapes)
    later = PassCosts(read_shapes(path))
    assert later.seconds(4, 2000) is None and not later.has_passes
    later.record(1, 2000, 0.020)
    assert later.seconds(4, 2000) == pytest.approx(0.032)
    assert later.seconds(8, 2000) == pytest.approx(0.032 * 2.3 / 1.55)  # not seen: as it usually goes on
    assert later.seconds(4, 100) == pytest.approx(0.032)  # the only depth that was seen in this run
    write_shapes(path, later.shapes)
    assert PassCosts(read_shapes(path)).shapes[1][4] == pytest.approx(1.6)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"shapes": 3}', '{"shapes": [{"x": 1}]}', '{"shapes": [[]]}']
)
def test_a_file_that_makes_no_sense_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "costs.json"
    assert read_shapes(path) == []
    path.write_text(text)
    assert read_shapes(path) == []
    for wrong in ({"1": 0.0}, {"0": 1.0}, {"1": None}, {"9" * 400: 1.0}, {"2": 1e-300}):
        path.write_text(json.dumps({"shapes": [wrong] + [{}] * len(DEPTHS)}))
        assert read_shapes(path) == []


def test_a_model_keeps_them(tmp_path, monkeypatch, make_bundle, tiny_config):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    bundle = make_bundle(replace(tiny_config, vocab_size=120), tokenizer=True)
    for threads in (1, 2):
        with edge.load(bundle.path, threads=threads) as model:
            path = costs_path(model.executor)
            assert path is not None and not path.exists()
            model.complete([5, 6, 7], max_new_tokens=5, ignore_eos=True)
        assert path.exists() and 1 in read_shapes(path)[0]
    assert len(list((tmp_path / "costs").iterdir())) == 2


def test_a_disturbed_run_is_not_believed_for_ever():
    costs = PassCosts([{1: 1.0, 2: 9.0, 8: 2.0}] + [{} for _ in DEPTHS])
    costs.record(1, 100, 0.010)
    assert costs.seconds(2, 100) == pytest.approx(0.018) and costs.seconds(8, 100) == pytest.approx(0.020)
    costs.record(2, 100, 0.090)
    for _ in range(101):
        costs.record(1, 100, 0.010)
    assert costs.seconds(2, 100) == pytest.approx(0.018)  # what was seen has become old


def test_old_files_go(tmp_path):
    for number in range(70):
        write_shapes(tmp_path / f"{number}.json", [{} for _ in (*DEPTHS, None)])
        os.utime(tmp_path / f"{number}.json", (number, number))
    write_shapes(tmp_path / "new.json", [{} for _ in (*DEPTHS, None)])
    left = {file.stem for file in tmp_path.iterdir()}
    assert len(left) == 64 and {"new", "69"} <= left and "0" not in left
