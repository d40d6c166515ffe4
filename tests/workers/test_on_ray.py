"""Ray's workers make the same bytes as this process; one that is killed is replaced; nothing is said or left behind.

Ray takes ten seconds to start, so that all tests share one, and what starts another is in one process of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.quantization import rounding
from moec.quantization.grid import Grid
from moec.quantization.rounding import quantize_weight
from moec.quantization.sequential import Sequential
from moec.recognition.weight_roles import weight_uses
from moec.weights.lazy import from_tensor
from moec.workers.on_ray import AHEAD, OnRay, ray_pool
from moec.workers.place import Place
from moec.workers.pool import Here
from moec.workers.working import _pools, pool
from tests import zoo
from tests.command_line import Cli
from tests.passes.test_quantize_gptq import ids
from tests.quantization.test_sequential import inputs

TWO = Place(2)
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'moec[ray]'")


@pytest.fixture(scope="module")
def two() -> Iterator[OnRay]:
    with ray_pool(TWO) as found:
        assert isinstance(found, OnRay)
        yield found


@pytest.fixture
def working(two: OnRay) -> Iterator[OnRay]:
    """Both do what is to be done."""
    _pools.append(two)
    yield two
    _pools.remove(two)


def where(shared: Tensor, item: int) -> tuple[int, int, int, bool]:
    return os.getpid(), item, torch.get_num_threads(), bool(shared.sum() == 3)


def product(shared: Tensor, item: Tensor) -> Tensor:
    return item @ shared.t()


def deadly(shared: str, item: int) -> int:
    """Ends its worker the first time that it is asked for 1."""
    mark = Path(shared, str(item))
    if item == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def always_deadly(_shared: None, _item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refusing(_shared: None, item: int) -> int:
    raise MoecError("M105", f"{item} is no number", "here", "give another")


def wrong(_shared: None, item: int) -> int:
    return 1 // item


def test_pieces_are_done_elsewhere_in_order_by_one_thread(two: OnRay) -> None:
    found = list(two.each(where, two.share(torch.ones(3)), range(12)))
    processes = {process for process, *_ in found}
    assert os.getpid() not in processes and 1 <= len(processes) <= 2
    assert [rest for _, *rest in found] == [[item, 1, True] for item in range(12)]


def test_few_items_are_under_way(two: OnRay) -> None:
    asked: list[int] = []
    items = (asked.append(n) or n for n in range(100))  # type: ignore[func-returns-value]
    found = two.each(where, two.share(torch.ones(3)), items)
    assert next(found)[1] == 0 and len(asked) == 2 * AHEAD
    found.close()  # type: ignore[attr-defined]


def test_products_are_the_same_bit_for_bit(two: OnRay) -> None:
    generator = torch.Generator().manual_seed(0)
    shared, long = torch.randn(513, 700, generator=generator), torch.randn(900, 701, generator=generator)
    items = [long[:300, :700], long[1:401, 1:], long[300:].contiguous()[:, :700].contiguous()]
    items = [item.contiguous() for item in items]
    here, there = (list(who.each(product, who.share(shared), items)) for who in (Here(), two))
    assert all(map(torch.equal, here, there))


def numbers(job: Sequential) -> list[Tensor]:
    return [w.load() for made in job.made.values() for part in _parts(made) for w in part.parts()]


def _parts(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def run(grids: dict[str, Grid]) -> tuple[list[Tensor], list[str]]:
    """Everything of a wider Mixtral that these grids are for."""
    of = _wide()
    todo = [(u, grids[u.kind]) for u in weight_uses(of) if u.kind in grids and u.weight is not None]
    job = Sequential(of, todo, "label")
    job.run(inputs(of, 480))
    return numbers(job), [str(matrix) for matrix in job.rounded]


@cache
def _wide() -> Any:
    from moec.huggingface.source import HuggingFaceSource

    model: Any = zoo.build("mixtral", hidden_size=96, intermediate_size=160)
    return HuggingFaceSource.from_model(model).capture()


def test_quantization_is_the_same_byte_for_byte(working: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = Grid(4, 16, False, "gptq", widths=(2, 4) * 4)
    grids = {"experts": experts, "attention": Grid(4, 32, True, "gptq")}
    did: list[str] = []
    real = OnRay.each
    monkeypatch.setattr(
        OnRay, "each", lambda own, task, *a, **k: (did.append(task.__name__), real(own, task, *a, **k))[1]
    )
    there, rounded = run(grids)
    assert {"_squares", "_rows", "_expert"} <= set(did)
    _pools.append(Here())
    here, also = run(grids)
    _pools.pop()
    assert len(here) == len(there) > 10 and rounded == also == []
    assert all(map(torch.equal, here, there))


def test_refined_rounding_is_the_same_byte_for_byte(working: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    values, grid = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0)), Grid(4, 16, False, "hqq")
    did: list[int] = []
    real = OnRay.each
    monkeypatch.setattr(OnRay, "each", lambda own, *a, **k: (did.append(1), real(own, *a, **k))[1])

    def made() -> list[Tensor]:
        rounding._remembered.cache_clear()
        return [w.load() for w in quantize_weight(from_tensor(values, "w"), grid).parts()]

    there = made()
    _pools.append(Here())
    here = made()
    _pools.pop()
    assert did and all(map(torch.equal, here, there))


def test_an_engine_is_the_same_byte_for_byte(
    two: OnRay, mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, on the workers that are here already."""
    np.save(tmp_path / "ids.npy", ids(600).numpy())
    monkeypatch.setattr("moec.workers.on_ray.ray_pool", lambda place: nullcontext(two))
    given = ("--calibration", tmp_path / "ids.npy", "--tolerance", 5, "--no-resume", "--quiet")
    pipeline = "quantize(bits=8, group=16, method=gptq, experts=8, floor=0, embeddings=8)"
    for name, more in (("here", ()), ("there", ("--workers", "local:2"))):
        out = Cli(capsys)("compile", mixtral, "--pass", pipeline, *given, *more, "-o", tmp_path / name)
        assert out.startswith(str(tmp_path / name))
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    assert "workers" not in (tmp_path / "there" / "moec.json").read_text()


def test_a_worker_that_is_killed_is_replaced(two: OnRay, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(two.each(deadly, two.share(str(tmp_path)), range(4))) == [0, 1, 4, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["1"], "a worker was killed"
    assert capfd.readouterr() == ("", "")


def test_what_kills_every_worker_ends_the_compile(two: OnRay) -> None:
    with pytest.raises(MoecError) as caught:
        list(OnRay(two._ray, TWO, retries=0).each(always_deadly, None, [0]))
    assert caught.value.code == "M304" and caught.value.exit_code == 3 and caught.value.where == "local:2"


def test_what_a_piece_raises_is_raised(two: OnRay) -> None:
    with pytest.raises(MoecError) as caught:
        list(two.each(refusing, None, [7]))
    assert (caught.value.code, caught.value.what, caught.value.fix) == ("M105", "7 is no number", "give another")
    with pytest.raises(ZeroDivisionError):
        list(two.each(wrong, None, [0]))


def test_workers_of_another_kind_are_refused(two: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    two.require()
    monkeypatch.setattr("moec.workers.on_ray._kind", lambda: "another")
    with pytest.raises(MoecError, match="another moec, PyTorch or processor") as caught:
        OnRay(two._ray, TWO).require()
    assert caught.value.code == "M304"


def test_this_process_is_as_it_was(two: OnRay, capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(pool(), Here) and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    list(two.each(where, two.share(torch.ones(3)), [0]))
    assert capfd.readouterr() == ("", "")
