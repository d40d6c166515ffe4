"""The monitor inside transformers' `Trainer`, which asks callbacks by the names of their methods alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from moec.routing.alarms import alarms_of
from moec.routing.figures import RouterFigures, summary_of


class Monitor(Protocol):
    """What a callback asks of a `RouterMonitor`."""

    tallies: dict[str, Any]

    def figures(self) -> tuple[RouterFigures, ...]:
        """Of each layer since `reset`."""

    def reset(self) -> None:
        """Count from nothing again."""

    def close(self) -> None:
        """Listen no longer."""


class RouterCallback:
    """Adds the routers' summary to every log of a `Trainer`, and counts anew after it.

    It has what `transformers.TrainerCallback` has; that class itself would be imported with the library. The summary
    stands in `trainer.state.log_history` under `router/…`; a warning is given once for each layer and kind of alarm.

    Attributes:
        monitor: the monitor. history: step and figures of each log.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.history: list[tuple[int, tuple[RouterFigures, ...]]] = []
        self._warned: set[tuple[str, str]] = set()

    def __getattr__(self, event: str) -> Callable[..., None]:
        """Every event of the Trainer that is not answered below."""
        if not event.startswith("on_"):
            raise AttributeError(event)
        return lambda *_args, **_kwargs: None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Put the summary beside the loss; nothing where no forward was counted since the last log."""
        if not self.monitor.tallies:
            return
        figures = self.monitor.figures()
        summary = {name: round(value, 6) for name, value in summary_of(figures).items() if math.isfinite(value)}
        for into in (logs, state.log_history[-1] if state.log_history else None):
            if into is not None:
                into.update(summary)
        self.history.append((state.global_step, figures))
        self.monitor.reset()
        for alarm in (a for found in figures for a in alarms_of(found) if a.kind != "short"):
            if (alarm.layer, alarm.kind) not in self._warned:
                self._warned.add((alarm.layer, alarm.kind))
                warnings.warn(f"step {state.global_step}: {alarm.layer}: {alarm.what}", stacklevel=2)

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Listen no longer."""
        self.monitor.close()
