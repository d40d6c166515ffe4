"""What is asked about serving a model, and the answers: load, links, prices, traffic, drafts, offload, many devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from moec.errors import MoecError
from moec.planning.costs import Cost, costs, memory_on, sizes
from moec.planning.devices import Device
from moec.planning.drafting import Draft, drafts
from moec.planning.engines import Server, servers
from moec.planning.formats import Format
from moec.planning.links import USUAL, Loading, find_link, loadings
from moec.planning.load import UNIFORM, Load
from moec.planning.offload import Offload, offloads
from moec.planning.on_cpu import ThisMachine
from moec.planning.pace import timed
from moec.planning.parallel import ExpertParallel
from moec.planning.prices import HOURS, check_prices
from moec.planning.shape import Shape
from moec.planning.spread import Spread, spread, spreads
from moec.planning.traffic import Served, Traffic, serve
from moec.planning.work import Work


@dataclass(frozen=True)
class Asked:
    """Questions about serving.

    Attributes:
        model: what the model is called in a command.
        load: how often each expert is taken.
        traffic: requests that arrive; None for none.
        prices: of an hour of a device, by its name, in any currency.
        links: what weights are loaded over; a disk and two networks where none is named.
        draft: tokens of a draft in speculative decoding; 0 for none.
        offload: where experts lie that are not on the device: `ram`, `disk` or a link.
    """

    model: str = "MODEL"
    load: Load = UNIFORM
    traffic: Traffic | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    links: Sequence[str] = ()
    draft: int = 0
    offload: Sequence[str] = ()


@dataclass(frozen=True)
class Idle:
    """A replica that nobody asks.

    Attributes:
        format, device, devices: what it is; as few devices as hold it, a power of two. What no node holds has none.
        bytes: of memory that it holds: weights, and the runtime of each device.
        an_hour, a_month: what it costs, of 730 hours.
    """

    format: str
    device: str
    devices: int
    bytes: int
    an_hour: float
    a_month: float


@dataclass(frozen=True)
class Serving:
    """Answers about serving; each is empty where it was not asked for.

    Attributes:
        load: that the figures rest on.
        loading: weights on their way to a device.
        idle: what a replica costs that nobody asks.
        costs: of tokens, by batch, where a device has a price.
        traffic: how the requests are served, by the model and by the other one.
        drafts: speculative decoding.
        offloads: experts outside of the device.
        spreads: ways to use several devices: the numbers that were asked for, and where one does not hold the model
            the smallest power of two that does.
        servers: existing engines, and the commands.
    """

    load: Load
    loading: tuple[Loading, ...] = ()
    idle: tuple[Idle, ...] = ()
    traffic: tuple[Served, ...] = ()
    drafts: tuple[Draft, ...] = ()
    offloads: tuple[Offload, ...] = ()
    spreads: tuple[Spread, ...] = ()
    servers: tuple[Server, ...] = ()
    costs: tuple[Cost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def together(answers: Iterable[Serving]) -> Serving:
    """Answers about one model in several formats as one; existing engines are named once."""
    first, *others = answers
    joined: dict[str, Any] = {
        f.name: tuple(x for each in (first, *others) for x in getattr(each, f.name))
        for f in fields(Serving)
        if f.name not in ("load", "servers")
    }
    return replace(first, **joined)


def answer(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device | None],
    batches: Sequence[int],
    context: int,
    ranks: Sequence[ExpertParallel],
    versus: Shape | None,
    asked: Asked,
) -> Serving:
    """Every answer.

    Args:
        shape, formats, devices, batches, context, versus: as for `estimate`.
        ranks: what the experts send on each number of devices.
        asked: the questions.

    Raises:
        MoecError: M201 for prices or traffic without the device, and for what does not suit the model; M202 for an
            unknown link or device.
    """
    here = [device for device in devices if device is not None]
    several = [device for device in here if not isinstance(device, ThisMachine)]  # of this machine there is one
    prices = _prices(asked, here)
    traffic = _traffic(shape, formats, here, versus, asked, prices)
    known = sum(timed(shape, f, d) for f in formats for d in here)  # rows of this model, which come first
    many = [*(r.ranks for r in ranks), *(s.devices for s in traffic[:known])]
    return Serving(
        asked.load,
        loadings(shape, formats, [find_link(name) for name in asked.links or USUAL]),
        tuple(idle for f in formats for d in here if d.name in prices for idle in _idle(shape, f, d, prices[d.name])),
        traffic,
        tuple(drafts(shape, formats, devices, batches, context, asked.draft, asked.load)) if asked.draft else (),
        tuple(offloads(shape, formats, devices, batches, context, asked.offload, asked.load)),
        tuple(_spreads(shape, formats, several, batches, context, ranks, asked.load)) if shape.states else (),
        servers(shape, asked.model, max(many, default=1)),
        tuple(costs(shape, formats, here, batches, context, asked.load, prices)) if shape.states else (),
    )


def _prices(asked: Asked, devices: Sequence[Device]) -> dict[str, float]:
    prices = check_prices(asked.prices)
    unasked = next((name for name in prices if name not in [d.name for d in devices]), None)
    if unasked:
        raise MoecError("M201", f"{unasked} has a price, and nothing is asked of it", "--price", f"--device {unasked}")
    return prices


def _traffic(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device],
    versus: Shape | None,
    asked: Asked,
    prices: Mapping[str, float],
) -> tuple[Served, ...]:
    if asked.traffic is None:
        return ()
    if not devices:
        raise MoecError("M201", "traffic needs a device that serves it", "--traffic", "add --device h200")
    for value, option in ((asked.traffic.prompt, "--prompt"), (asked.traffic.answer, "--answer")):
        if value < 1:
            raise MoecError("M201", f"{value} is below 1", option, "ask for at least 1")
    models = [(shape, asked.load), *([(versus, asked.load.elsewhere())] if versus else [])]
    return tuple(
        serve(model, format, device, asked.traffic, load, prices.get(device.name))
        for model, load in models
        for format in formats
        for device in devices
        if timed(model, format, device)
    )


def _idle(shape: Shape, format: Format, device: Device, price: float) -> Iterator[Idle]:
    memory = memory_on(shape, format, device, 1, 1)
    for needed in sizes(shape, format, device, 1, 1)[:1]:
        held = memory.weights + needed * memory.runtime
        yield Idle(format.name, device.name, needed, held, needed * price, needed * price * HOURS)


def _spreads(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device],
    batches: Sequence[int],
    context: int,
    ranks: Sequence[ExpertParallel],
    load: Load,
) -> list[Spread]:
    works = [Work(shape, format, batch, context, load) for format in formats for batch in batches]
    rows = [row for rank in ranks for device in devices for row in spreads(works, device, rank.ranks)]
    asked = [rank.ranks for rank in ranks]
    for device in devices:
        for work in works:
            needed = sizes(shape, work.format, device, round(work.texts), context)[:1]
            rows += [spread(work, device, n, "tensor") for n in needed if n > 1 and n not in asked]
    return rows
