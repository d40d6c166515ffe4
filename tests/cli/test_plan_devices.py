"""The table of devices."""

from __future__ import annotations

from pathlib import Path

from moec.cli.plan_devices import device_rows
from moec.huggingface.shape import shape_of
from moec.planning.estimate import estimate
from tests.planning import configs


def test_a_row_a_device_and_nothing_without_one(tmp_path: Path) -> None:
    shape = shape_of(str(configs.write(tmp_path, configs.MIXTRAL)))
    assert device_rows(estimate(shape)) == []
    head, fits, none = device_rows(estimate(shape, ("bf16",), ("h200", "rtx4090"), (1,)))
    assert fits[:4] == ("h200", "bf16", "1", "1") and fits[-1] == "memory, compute" and "–" in fits[4]
    assert none[:4] == ("rtx4090", "bf16", "1", "4") and none[4:] == ("–", "–", "") and len(head) == len(none)
