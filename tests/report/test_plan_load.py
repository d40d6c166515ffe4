"""Maps of a load."""

from __future__ import annotations

from moec.report.plan_load import load_maps


def test_a_map_marks_what_nobody_takes_and_a_line_shows_what_is_uneven() -> None:
    share, line = load_maps({"layers.0": [0.25] * 4, "layers.1": [0.5, 0.5, 0.0, 1e-9]})
    assert 'class="missed"' in share and share.count("missed") == 1 and "2 rows of up to 4 numbers" in share
    assert "layers.0: 1.00" in line and "layers.1: 2.00" in line and "1.00 to 2.00" in line


def test_one_layer_has_no_line() -> None:
    (only,) = load_maps({"experts": [0.5, 0.5]})
    assert "missed" not in only and "<polyline" not in only
