"""`merge`: fine-tunes of one model become the experts of a mixture, without training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from moec.errors import MoecError
from moec.experts.dense_place import own_networks
from moec.experts.merged_place import MergedPlace, fit_in_order
from moec.experts.merged_rest import WAYS, Rest, departures, rest_of
from moec.experts.merged_sources import MergeSource, divided_text, name_of, open_sources
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.program import Program
from moec.recognition.ffn import Ffn, find_ffns
from moec.registry import did_you_mean

BEST = "best"


@dataclass(frozen=True)
class Merge(Pass):
    """Put the feed-forward networks of fine-tunes side by side, as experts of one model.

    As BTX does (arXiv 2403.07816), but behind routers that are fitted to tell their texts apart. The calibration names
    a text for each model: `--calibration "code=a.txt,law=b.txt"`, called like the model's folder. Layer by layer, each
    router is solved for in closed form, from what the network reads of each text once all layers before it are merged
    (`moec.experts.merged_router`). What is outside of the networks (attention, norms, embeddings) exists once; `best`
    measures on each model's held-out text which way of making one of several leaves it nearest to itself
    (`moec.experts.merged_rest`). Models that are equal give their function exactly.

    It makes a new model. That is what the engine is compared with: where an architecture of transformers holds it, as
    transformers runs it, else as the program in PyTorch.

    Attributes:
        sources: folders, or hub ids in the local cache, of models of the base's form; LoRA adapters too.
        top_k: experts a token; with 1 it pays what the base does.
        rest: `best`, or one of `base`, `average` and `regression`.
        rank: of the differences from the base's matrices that experts keep; 0 keeps them whole.
        ridge: how strongly routers are drawn to none, in units of the mean squared activation.
        refit: fit the experts' last matrices to the models' residual streams, which takes back a part of what routing
            and the rest changed; with one expert a token, and whole differences.
    """

    contract: ClassVar[Contract] = "new model"
    needs_weights: ClassVar[Weights] = "unquantized"

    sources: Sequence[str] = ()
    top_k: int = 1
    rest: str = BEST
    rank: int = 0
    ridge: float = 1e-3
    refit: bool = True

    def needs_calibration(self) -> bool:
        return True

    def other_models(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def plan(self, program: Program, context: Context) -> Plan:
        """The form of the mixture; no model is opened."""
        self.check_settings()
        own, copy = context.given_to(self), program.clone()
        ffns = own_networks(copy, own)
        self._rewrite(copy, ffns, [[ffn] * len(self.sources) for ffn in ffns])
        copy.check()
        copy.finish()
        return Plan(str(self), len(ffns), len(ffns), copy, tuple(own.misses))

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of networks that became mixtures. Raises M203 on settings, models and texts that do not
        fit each other, and what opening the models raises."""
        self.check_settings()
        texts = self._texts(context.require_calibration())
        ffns = own_networks(program, context)
        if not ffns:
            return 0
        widest = max(ffn.hidden for ffn in ffns)
        parts = [divided_text(text, program, widest, str(self)) for text in texts.values()]
        programs = open_sources(program, self.sources, str(self))
        sources = [MergeSource(p, *t) for p, t in zip(programs, parts, strict=True)]
        base = program.clone()
        own = [{ffn.output.name: ffn for ffn in find_ffns(s.program)[0]} for s in sources]
        places = self._rewrite(program, ffns, [[each[ffn.output.name] for each in own] for ffn in ffns])
        program.finish()
        outside = [name for name in program.weights if name in base.weights]
        way, figures = self._settle(base, sources, outside)
        program.weights.update(way)
        fit_in_order(program, places, sources, self.ridge, self.refit)
        context.facts["experts"] = list(texts)
        context.facts["rest"] = figures
        context.facts["layers"] = [place.facts() for place in places]
        return len(places)

    # ------------------------------------------------------------------ configuration
    def _refuse(self, what: str, fix: str, where: str = "") -> MoecError:
        return MoecError("M203", what, where or str(self), fix)

    def check_settings(self) -> None:
        names = [name_of(model) for model in self.sources]
        twice = next((n for n in names if names.count(n) > 1), "")
        if len(names) < 2 or isinstance(self.sources, str):
            raise self._refuse("a mixture is made of two models at least", "write merge(sources=[code/, law/])")
        if twice:
            fix = "rename one folder: the calibration calls texts by these names"
            raise self._refuse(f"two models are called {twice}", fix)
        if type(self.top_k) is not int or not 1 <= self.top_k <= len(names):
            fix = f"set top_k between 1 and {len(names)}"
            raise self._refuse(f"top_k={self.top_k} of {len(names)} experts is not possible", fix)
        if self.rest not in (BEST, *WAYS):
            raise self._refuse(f"there is no rest {self.rest!r}", did_you_mean(str(self.rest), [BEST, *WAYS]))
        if type(self.rank) is not int or self.rank < 0:
            raise self._refuse(
                f"rank={self.rank} is no rank of a matrix", "give a whole number, 0 for whole differences"
            )
        if not 0 < self.ridge < math.inf:
            raise self._refuse(f"ridge={self.ridge} is not possible", "a number above 0; 0.001 is usual")

    def check_calibration(self, calibration: Calibration) -> None:
        self._texts(calibration)

    def _texts(self, calibration: Calibration) -> dict[str, Calibration]:
        """The text of each model, in their order. Raises M203 where one has none, or a text belongs to none."""
        names, given = [name_of(model) for model in self.sources], calibration.parts
        example = ",".join(f"{name}=FILE" for name in names)
        lacking = [name for name in names if name not in given]
        strange = [name for name in given if name not in names]
        if lacking or strange:
            what = (
                f"the calibration names no text of {', '.join(lacking)}"
                if lacking
                else f"{strange[0]} is no model here"
            )
            raise self._refuse(what, f'write --calibration "{example}"', "--calibration")
        return {name: given[name] for name in names}

    # ------------------------------------------------------------------ work
    def _rewrite(self, program: Program, ffns: Sequence[Ffn], own: Iterable[Sequence[Ffn]]) -> list[MergedPlace]:
        places = [MergedPlace(program, ffn, same, self.rank) for ffn, same in zip(ffns, own, strict=True)]
        made: dict[fx.Node, fx.Node] = {}
        for place in places:
            place.rewrite(self.name, self.top_k, made)
        return places

    def _settle(
        self, base: Program, sources: Sequence[MergeSource], outside: Sequence[str]
    ) -> tuple[Rest, dict[str, Any]]:
        """What stands outside of experts, and how it was chosen."""
        inside = [n for n in base.weights if n not in outside]
        if self.rest != BEST:
            return rest_of(base, sources, outside, self.rest), {"way": self.rest}
        made = {way: rest_of(base, sources, outside, way) for way in WAYS}
        kept = [{n: s.program.weights[n] for n in inside} for s in sources]
        whole = {way: {n: base.weights[n] for n in outside} | rest for way, rest in made.items()}
        found = departures(whole, sources, kept)
        best = min(found, key=lambda way: sum(found[way]))
        return made[best], {"way": best, "departures": found}
