"""A monitor of the routers of a model that is trained: the figures of `moec routers`, from the model's own calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn

from moec.errors import MoecError
from moec.routing.alarms import Alarm, alarms_of
from moec.routing.figures import RouterFigures, figures_of, summary_of
from moec.routing.similarity import Similarity, of_weights
from moec.routing.tally import Choice, RouterTally
from moec.training.callback import RouterCallback
from moec.training.listening import listen
from moec.training.mixtures import find_mixtures, joined, no_mixture, programs_in


class RouterMonitor:
    """Counts what every router of a model chooses, in each forward from now until `close`.

    It takes a module of `Program.module(trainable=True)`, whose routers moec knows, and any module whose experts are
    one module that is called with the tokens' ids and weights, as transformers' are. Figures that rest on the scores of
    all experts come from the router's own weight, and only where that explains the weights that the model used. Tokens
    that an `attention_mask` leaves out do not count. Gradients are not touched. A forward that checkpointing repeats
    counts twice, which changes no share.

    Attributes:
        tallies: the sums of each layer since `reset`, by name.
    """

    def __init__(self, model: nn.Module, training_only: bool = False, every: int = 1) -> None:
        """
        Args:
            model: the module, or one that holds it.
            training_only: count only in train mode, so that evaluations between steps do not mix with it.
            every: count one forward in so many, of each program in the model apart.

        Raises:
            MoecError: M201 for a model without a mixture that can be listened to, and for an `every` below 1.
        """
        if every < 1:
            raise MoecError("M201", f"every={every} counts no forward", "RouterMonitor", "every=1 counts each of them")
        self.tallies: dict[str, RouterTally] = {}
        self._model, self._training_only, self._every = model, training_only, every
        self._forwards = Counter[str]()
        ends, self._names = listen(model, self._is_wanted, self._add)
        self._ends: list[Callable[[], None]] = ends
        if not ends:
            raise no_mixture(model, "it has no mixture of experts that is known")

    def __enter__(self) -> RouterMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_wanted(self, whose: str, begins: bool) -> bool:
        """Whether the forward that runs counts; asked once with `begins` for each."""
        if begins:
            self._forwards[whose] += 1
        return (self._model.training or not self._training_only) and self._forwards[whose] % self._every == 0

    def _add(self, name: str, choice: Choice, mask: Tensor | None) -> None:
        if mask is not None and mask.numel() == len(choice.ids):
            choice = choice.only(mask.flatten().bool())
        if name not in self.tallies:
            self.tallies[name] = RouterTally(choice.experts, choice.ids.shape[-1])
        self.tallies[name].add(choice)

    # ------------------------------------------------------------------ what was found
    def figures(self, alike: bool = False) -> tuple[RouterFigures, ...]:
        """The figures of each layer since `reset`, in the order of the model.

        Args:
            alike: say how alike the experts' weights are, too; it reads them all.

        Raises:
            MoecError: M201 where no forward was counted.
        """
        if not self.tallies:
            fix = "run the model after the monitor was made; with training_only, in train mode"
            raise MoecError("M201", "no forward was counted", type(self._model).__name__, fix)
        near = self._similarity() if alike else {}
        names = [*(n for n in self._names if n in self.tallies), *(n for n in self.tallies if n not in self._names)]
        return tuple(figures_of(name, self.tallies[name], (), near.get(name)) for name in names)

    def alarms(self, alike: bool = False) -> list[Alarm]:
        """Warnings about the layers, with their thresholds."""
        return [alarm for found in self.figures(alike) for alarm in alarms_of(found)]

    def summary(self) -> dict[str, float]:
        """A few numbers for a log: means over layers, and how many experts of all layers are dead or starved."""
        return summary_of(self.figures())

    def counts(self) -> dict[str, Tensor]:
        """Choices of each expert since `reset`, int64 `[E]` by layer: what `update_bias` takes."""
        return {name: tally.counts.clone() for name, tally in self.tallies.items()}

    def reset(self) -> None:
        """Count from nothing again."""
        self.tallies.clear()

    def close(self) -> None:
        """Listen no longer."""
        for end in self._ends:
            end()
        self._ends = []

    def callback(self) -> RouterCallback:
        """A callback for transformers' `Trainer`, see `RouterCallback`. From now on only train mode counts."""
        self._training_only = True
        return RouterCallback(self)

    def _similarity(self) -> dict[str, Similarity | None]:
        programs = programs_in(self._model)
        found = {m.name: of_weights(m.matrices()) for m in find_mixtures(self._model, programs)}
        for path, program in programs.items():
            found |= {joined(path, name): of_weights(w) for name, w in program.expert_weights().items()}
        return found
