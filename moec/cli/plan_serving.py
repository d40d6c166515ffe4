"""What `moec plan` says about serving: options, and tables of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from moec.cli import completing
from moec.cli.lists import words
from moec.errors import MoecError
from moec.shown import size_of, span_of

if TYPE_CHECKING:
    from moec.planning.costs import Cost
    from moec.planning.drafting import Draft
    from moec.planning.estimate import Estimate
    from moec.planning.offload import Offload
    from moec.planning.serving import Serving
    from moec.planning.spread import Spread
    from moec.planning.traffic import Operation, Served

Row = tuple[str, ...]


def _rate(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    from moec.planning.traffic import read_rate

    return None if value is None else read_rate(value)


def _prices(context: click.Context, option: click.Parameter, value: str) -> dict[str, float]:
    from moec.planning.prices import read_prices

    return read_prices(value)


def _draft(context: click.Context, option: click.Parameter, value: int | None) -> int:
    if value is not None and value < 1:
        raise MoecError("M201", f"{value} is below 1", "--draft", "write --draft 3")
    return value or 0


def _of_traffic(context: click.Context, option: click.Parameter, value: int) -> int:
    """Refuse what is asked of no traffic; --traffic is eager, so it is known by now."""
    given = context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
    if given and context.params.get("traffic") is None:
        what = f"{option.opts[0]} is said of requests, and there are none"
        raise MoecError("M201", what, option.opts[0], "say how many there are, too: --traffic 20rps --device h200")
    return value


_OPTIONS = (
    click.option(
        "--load",
        default="uniform",
        shell_complete=completing.plan_loads,
        help="How often experts are taken: zipf:1.0, or moec routers' JSON file.",
    ),
    click.option(
        "--traffic", callback=_rate, is_eager=True, help="20rps: how many replicas serve it, how fast (with --device)."
    ),
    click.option(
        "--prompt", type=int, default=1024, callback=_of_traffic, help="Tokens of a request's prompt (default 1024)."
    ),
    click.option(
        "--answer", type=int, default=256, callback=_of_traffic, help="Tokens of a request's answer (default 256)."
    ),
    click.option(
        "--price",
        "prices",
        callback=_prices,
        default="",
        shell_complete=completing.plan_prices,
        help="h200=3.5: what an hour of a device costs.",
    ),
    click.option(
        "--link",
        "links",
        callback=words,
        default="",
        shell_complete=completing.plan_links,
        help="nvme,25Gb/s,…: what the weights come over.",
    ),
    click.option("--draft", type=int, callback=_draft, help="Tokens of a draft: what speculative decoding costs."),
    click.option(
        "--offload",
        callback=words,
        default="",
        shell_complete=completing.plan_places,
        help="ram,disk,…: experts that are not on the device.",
    ),
)


def serving_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options about serving."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def serving_tables(found: Estimate) -> dict[str, list[Row]]:
    """Each answer that was asked for as a table, its head first, by its title."""
    serving = found.serving
    if serving is None:
        return {}
    tables = {
        "Cost of tokens": _costs(serving.costs),
        "Traffic": _served(serving),
        "Speculative decoding": _drafts(serving.drafts),
        "Experts that are elsewhere": _offloads(serving.offloads),
        "Ways to use several devices": _spreads(serving.spreads),
    }
    return {title: table for title, table in tables.items() if len(table) > 1}


def serving_notes(found: Estimate) -> Iterator[str]:
    """The same in words: loading, idling, offload, balance."""
    serving = found.serving
    if serving is None:
        return
    yield from _loading(serving)
    for idle in serving.idle:
        hold = "holds" if idle.devices == 1 else "hold"
        yield (
            f"idle: {idle.devices} {idle.device} {hold} {size_of(idle.bytes)} in {idle.format} for {idle.an_hour:,.2f}"
            f" an hour, {idle.a_month:,.0f} a month of 730 hours"
        )
    for format, device in dict.fromkeys((o.format, o.device) for o in serving.offloads if not o.bytes_a_step):
        yield f"offload: every expert fits on {device} in {format} at some batches; nothing is sent there"
    yield from _balances(found)


def server_lines(found: Estimate) -> Iterator[str]:
    """Engines that serve the model, with their commands."""
    serving = found.serving
    if serving is not None and (found.ranks or serving.traffic):
        for server in serving.servers:
            known = f"listed for {server.version}" if server.listed else f"if it knows {found.shape.name}"
            yield f"{server.name}: {server.command}  ({known})"


def origins(found: Estimate) -> list[str]:
    """Where the times come from, each once, and what would bring better ones."""
    from moec.planning.measured import missing

    times = [t.origin for s in found.situations for t in (s.decode_time, s.prompt_time) if t is not None]
    if found.serving:
        times += [s.origin for s in found.serving.traffic if s.origin]
        times += [s.time.origin for s in found.serving.spreads if s.time is not None]
    better = missing([s.device for s in found.situations if s.device])
    return [f"times: {origin}" for origin in dict.fromkeys(times)] + ([f"times: {better}"] if better else [])


def _costs(costs: Sequence[Cost]) -> list[Row]:
    head: Row = ("format", "batch", "never idle", "tokens/s", "a million tokens")
    return [head, *(_cost_row(c) for c in costs)]


def _cost_row(cost: Cost) -> Row:
    price = _price(*cost.a_million)
    return cost.format, str(cost.batch), f"{cost.devices} {cost.device}", span_of(*cost.tokens_a_second, ",.0f"), price


def _served(serving: Serving) -> list[Row]:
    priced = any(s.fast and s.fast.cost_an_hour for s in serving.traffic)
    several = len({s.model for s in serving.traffic}) > 1
    head: Row = ("format", "device", "replicas", "batch", "busy", "first token", "a token")
    head = (*(("model",) if several else ()), *head, *(("a million tokens",) if priced else ()))
    rows = [_served_row(s, priced) for s in serving.traffic]
    return [head, *((s.model, *row) if several else row for s, row in zip(serving.traffic, rows, strict=True))]


def _served_row(served: Served, priced: bool) -> Row:
    fast, slow = served.fast, served.slow
    start: Row = (served.format, f"{served.devices or 'more than 8'} {served.device}")
    if fast is None or slow is None:
        return (*start, "none: it does not fit", *[""] * (4 + priced))

    def both(of: Callable[[Operation], float], form: str = ",.0f") -> str:
        return span_of(of(fast), of(slow), form)

    row: Row = (
        *start, both(lambda o: o.replicas), both(lambda o: o.batch, ",.1f"), both(lambda o: o.busy, ".0%"),
        both(lambda o: 1e3 * o.first_token_seconds) + " ms", both(lambda o: 1e3 * o.token_seconds, ",.1f") + " ms",
    )  # fmt: skip
    if not priced:
        return row
    return (*row, _price(fast.cost_a_million, slow.cost_a_million or 0) if fast.cost_a_million else "")


def _price(low: float, high: float) -> str:
    """In hundredths, or in finer parts where those would lose digits."""
    least = min(low, high)
    return span_of(low, high, ",.2f" if least >= 0.1 or not least else ",.3f" if least >= 0.01 else ",.2g")


def _drafts(drafts: Sequence[Draft]) -> list[Row]:
    head: Row = ("format", "device", "batch", "draft", "experts", "read a step", "a step takes", "pays from")
    return [head, *(_draft_row(d) for d in drafts)]


def _draft_row(draft: Draft) -> Row:
    low, high = draft.break_even
    pays = "never" if low > 1 else f"{span_of(low, min(high, 1), '.0%')} accepted"
    return (
        draft.format, draft.device or "", str(draft.batch), str(draft.draft), "{:.1f} → {:.1f}".format(*draft.experts),
        "{} → {}".format(*map(size_of, draft.bytes)), f"{span_of(*draft.slowdown, '.2f')} times", pays,
    )  # fmt: skip


def _offloads(offloads: Sequence[Offload]) -> list[Row]:
    head: Row = ("format", "device", "batch", "experts over", "kept a layer", "found there", "sent a token", "at most")
    return [head, *(_offload_row(o) for o in offloads if o.bytes_a_step)]


def _offload_row(each: Offload) -> Row:
    most = "" if each.tokens_a_second is None else f"{each.tokens_a_second:,.1f} tokens/s"
    return (
        each.format, each.device or "", str(each.batch), f"{each.link}, {each.rate:g} GB/s", f"{each.kept:.0f}",
        f"{each.hit_rate:.0%}", size_of(each.bytes_a_token), most,
    )  # fmt: skip


def _spreads(spreads: Sequence[Spread]) -> list[Row]:
    head: Row = ("parallel by", "format", "batch", "devices", "each holds", "sends a step", "decode")
    return [head, *(_spread_row(s) for s in spreads)]


def _spread_row(each: Spread) -> Row:
    speed = "not known beyond a node" if each.fits else "does not fit"
    if each.time is not None:
        rate = span_of(each.batch / each.time.high, each.batch / each.time.low, ",.0f")
        speed = f"{rate} tokens/s, {each.time.bound}"
    return (
        each.how, each.format, str(each.batch), f"{each.ranks} {each.device}", size_of(each.bytes), size_of(each.sent),
        speed,
    )  # fmt: skip


def _loading(serving: Serving) -> Iterator[str]:
    for format in dict.fromkeys(each.format for each in serving.loading):
        rows = [each for each in serving.loading if each.format == format]
        ways = ", ".join(f"{_duration(each.seconds)} over {each.link} ({each.rate:g} GB/s)" for each in rows)
        yield f"loading {size_of(rows[0].bytes)} in {format} takes at least {ways}"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1e3 * seconds:.0f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


def _balances(found: Estimate) -> Iterator[str]:
    for rank in found.ranks:
        even = rank.balance
        if even is None or even.in_order <= 1:
            continue
        copies = f"{even.copies} copies a layer make it {even.with_copies:.2f}" if even.copies else ""
        enough = copies or ("no copies are needed" if even.copies == 0 else "no number of copies makes it 1.1")
        yield (
            f"{rank.ranks} ranks: the busiest has {even.in_order:.2f} of the mean load, {even.placed:.2f} with each"
            f" expert well placed; {enough}"
        )
