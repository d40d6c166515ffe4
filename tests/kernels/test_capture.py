"""Nothing on the path waits for the device, and nothing on it depends on values: what CUDA graphs, `torch.compile` and
`torch.export` need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from moec.dialect import Activation, Routing, moe_reference
from moec.dialect.experts import dense_expert, experts_reference
from moec.kernels import dispatch, launch
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from tests.kernels.accuracy import distance, problem
from tests.kernels.conftest import Interpret
from tests.kernels.instruments import NeverWaiting, Waits, captured

RULE, ROUTING = Activation(), Routing(2, "sigmoid", groups=3, top_groups=2, group_score="top2")
TOKENS = {"few": 5, "many": 20}


def block(tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
    given = problem(RULE, tokens=tokens, biases=True, seed=seed)
    router = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    return given.x, router, torch.linspace(-1, 1, 6), torch.linspace(1, -1, 6), *given.tensors()[3:]  # type: ignore[return-value]


def watched(tokens: int) -> Tensor:
    """The whole path, as `torch.ops.moec` takes it on CUDA, under the watch, kernels included; runs where `interpret`
    says."""
    given = block(tokens)
    with NeverWaiting():
        return dispatch.moe(*given, **ROUTING.arguments(), **RULE.arguments())


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_nothing_waits(interpret: Interpret, tokens: int) -> None:
    exact = moe_reference(*(t.double() for t in block(tokens)), ROUTING, RULE, False)
    assert distance(interpret(watched, tokens), exact) < 1e-5


def waiting(which: str) -> str:
    """What the watch says of paths that do wait; runs where `interpret` says."""
    given = problem(tokens=5)
    reference = dense_expert(*given.tensors()[3:], RULE)
    paths: dict[str, Callable[[], object]] = {
        "the reference": lambda: experts_reference(given.x, given.ids, given.weights, reference, 6),
        "item": lambda: float(given.x[0, 0]),
        "nonzero": lambda: given.ids.nonzero(),
        "unique": lambda: given.ids.unique(),
        "a mask": lambda: given.x[given.x > 0],
    }
    try:
        with NeverWaiting():
            paths[which]()
    except Waits as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("which", "operator"),
    [
        ("the reference", "bincount"),
        ("item", "_local_scalar_dense"),
        ("nonzero", "nonzero"),
        ("unique", "_unique2"),
        ("a mask", "index"),
    ],
)
def test_what_waits_is_seen(interpret: Interpret, which: str, operator: str) -> None:
    assert operator in interpret(waiting, which)


def replayed(tokens: int, resident: int) -> tuple[Tensor, Tensor, Tensor]:
    """A captured call, the same memory replayed with other tokens in it, and what these give by themselves; runs where
    `interpret` says."""
    x, *rest = block(tokens)
    other = block(tokens, seed=7)[0]
    kwargs = {"routing": ROUTING, "rule": RULE, "resident": resident}
    wanted = launch.moe(other, *rest, **kwargs)  # type: ignore[arg-type]
    with captured() as kernels:
        out = launch.moe(x, *rest, **kwargs)  # type: ignore[arg-type]
    first = out.clone()
    x.copy_(other)
    for kernel in kernels:
        kernel()
    return first, out, wanted


@pytest.mark.parametrize(("tokens", "resident"), [(5, 0), (20, 1)], ids=["few", "many, persistent"])
def test_a_replay_computes_for_the_tokens_that_are_there(interpret: Interpret, tokens: int, resident: int) -> None:
    """Its routing differs, and so does how many tokens each expert gets: no grid, no size and no copy may hold on to
    the first call's."""
    first, again, wanted = interpret(replayed, tokens, resident)
    assert torch.equal(again, wanted) and not torch.equal(first, wanted)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_on_tensors_of_cuda_without_values(tokens: int, packed: bool) -> None:
    """On fake tensors there is nothing to read: whatever looks at a value, or copies to the host, raises."""
    with FakeTensorMode(), recording(90) as found, NeverWaiting():
        w_in: Tensor | ExpertCodes = empty(6, 128, 64)
        if packed:
            w_in = ExpertCodes(empty(6, 128, 32, dtype=torch.uint8), empty(6, 128, 2))
        out = launch.moe(
            empty(tokens, 64),
            empty(6, 64),
            None,
            empty(6),
            w_in,
            empty(6, 64, 64),
            None,
            None,
            routing=ROUTING,
            rule=RULE,
        )
    assert out.shape == (tokens, 64) and out.device.type == "cuda" and len(found.launches) == (5 if tokens == 5 else 6)


def test_what_waits_is_seen_on_tensors_without_values() -> None:
    with FakeTensorMode(), recording(90), NeverWaiting():
        x, ids, weights = empty(5, 64), empty(5, 2, dtype=torch.int64), empty(5, 2)
        matrices = empty(6, 128, 64), empty(6, 64, 64)
        launch.experts(x, ids, weights, *matrices, rule=RULE)
        with pytest.raises((Waits, RuntimeError), match=r"_local_scalar_dense|to another device"):
            launch.experts(x, ids, weights, *matrices, rule=RULE, checked=True)
        with pytest.raises(Waits, match="to another device"):
            x.cpu()
