"""`carve`: a dense model's feed-forward networks become mixtures whose tokens use a part of the neurons, without
training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, fx

from moec.errors import MoecError
from moec.experts.carved_effect import cost_curves
from moec.experts.carved_place import CarvedPlace, Place, carve_in_order, require_tokens, why_not_analytical
from moec.experts.carved_router import ROUTERS
from moec.experts.carving import Carving
from moec.experts.dense_place import own_networks
from moec.experts.finer_place import FinerPlace
from moec.experts.neuron_groups import PARTITIONS
from moec.experts.spread import spread
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.decoder_signature import LOGITS
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.ffn import Ffn
from moec.registry import did_you_mean

_FITTED = 0.5  # of its cost that a network keeps when its last matrix is fitted anew; 0.4 to 0.7 were measured
_STEP = 1 / 32  # of the experts, by which less is given up until a budget is kept


@dataclass(frozen=True)
class Carve(Pass):
    """Cut dense feed-forward networks into equal experts, of which a token uses `active`.

    The model computes less, and says something else where what is left out mattered. Layers are cut in graph order,
    each on what the layers before it, already cut, bring to it. Experts are clusters of neurons that go together; a
    router is fitted in closed form to how much each expert would add, and the last matrix is fitted anew (see
    `moec.experts.carving`). The report holds, for each layer, what is lost, beside what static pruning to as many
    neurons loses (FLAP, arXiv 2312.11983) and what a router that knows the outcome would.

    Attributes:
        experts: E, parts of each network.
        shared: how many of them every token uses: those of the neurons that are worth most. None tries half of the
            active ones and more, in each layer, and takes what loses least on text that is held out.
        active: experts a token, shared ones among them; or a share below 1 of all, which is spread over the layers
            where it costs least, and of which less is given up where `--max-kl` would not allow it. All of them is
            exact.
        partition: `coactivation` (neurons that are large for the same tokens), `rows` (clusters of the first matrix's
            rows: MoEfication, arXiv 2110.01786), `indicator` (CMoE, arXiv 2502.04416), `variation` (ExpertWeaver, arXiv
            2602.15521; `shared` is then the most that it may take) or `random` (LLaMA-MoE, arXiv 2406.16554).
        router: `ridge`, `mean-row` (MoEfication and ExpertWeaver), `analytical` (CMoE; no linear router, so that no
            operator for a whole mixture takes it) or `random`.
        compensate: add what experts give on average to tokens that do not choose them.
        refit: fit the last matrix anew, by least squares.
        seed: for clusters and what is random, beside the pipeline's own.
    """

    contract: ClassVar[Contract] = "approximate"
    needs_weights: ClassVar[Weights] = "unquantized"
    prepared_by: ClassVar[tuple[str, ...]] = ("find-moe",)

    experts: int = 16
    shared: int | None = None
    active: int | float = 0.5
    partition: str = "coactivation"
    router: str = "ridge"
    compensate: bool = True
    refit: bool = True
    seed: int = 0

    def contract_of(self) -> Contract:
        return "exact" if self.active == self.experts else "approximate"

    def needs_calibration(self) -> bool:
        return self.partition != "random" or self.router != "random" or self.compensate or self.refit

    def without_data(self) -> Pass:
        """The same shapes, cut at random, every layer alike."""
        known = self.partition in PARTITIONS and self.router in ROUTERS
        spread = self._is_share() and 0 < self.active < 1
        shared = self.shared or 0
        active = max(shared, 1, round(self.active * self.experts)) if spread else self.active
        router = self.router if self.router == "analytical" else "random"
        drawn = replace(self, partition="random", router=router, compensate=False, refit=False)
        return replace(drawn, shared=shared, active=active) if known else self

    def plan(self, program: Program, context: Context) -> Plan:
        """With a share the text decides which layers are cut at all."""
        found = super().plan(program, context)
        return replace(found, least=0) if self._is_share() and found.most else found

    def milder(self) -> tuple[Pass, ...]:
        share = self.active if self._is_share() else self.active / self.experts
        steps = [s for s in (0.75, 0.875) if s > share]
        return tuple(replace(self, active=s if self._is_share() else round(s * self.experts)) for s in steps)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of networks that were cut. Raises M203 on settings that fit no network, and for a text
        that is too short."""
        self.check_settings()
        ffns = own_networks(program, context)
        for ffn in ffns:
            self._check_network(ffn)
        batches = list(context.require_calibration().batches(program.inputs)) if self.needs_calibration() else []
        seed = context.seed + self.seed
        counts = self._counts(program, ffns, batches, seed, context)
        wanted = [(f, n) for f, n in zip(ffns, counts, strict=True) if n < self.experts or self.active == self.experts]
        for ffn in (f for f in ffns if f not in [w for w, _ in wanted]):
            context.miss(ffn.output, "the share is spread so that all of its experts stay")
        untouched = program.clone() if self.refit and self.contract_of() == "approximate" else None
        places: list[Place] = [CarvedPlace(program, ffn, self._carving(n, seed), str(self)) for ffn, n in wanted]
        places += self._mixtures(program, context, seed)
        made: dict[fx.Node, fx.Node] = {}
        order = {node: k for k, node in enumerate(program.graph.nodes)}
        places.sort(key=lambda place: order[place.end])
        for place in places:
            place.rewrite(self.name, made)
        if places:
            carve_in_order(program, places, batches, untouched)
        context.facts["layers"] = [place.facts(measured=bool(batches)) for place in places]
        self._compare(context)
        return len(places)

    def _compare(self, context: Context) -> None:
        """Say how all layers together stand beside static pruning, and first of all where they lose."""
        layers = context.facts["layers"]
        if not layers or "static" not in layers[0]:
            return
        mean = {name: sum(layer[name] for layer in layers) / len(layers) for name in ("carved", "static", "oracle")}
        routed = [layer for layer in layers if layer["shared"] < layer["active"] < self.experts]
        context.facts["beside_static_pruning"] = [{"": "mean of the layers", **mean, "routed layers": len(routed)}]
        if mean["carved"] >= mean["static"] and self.contract_of() == "approximate":
            lost, pruned = f"{mean['carved']:.3g}", f"{mean['static']:.3g}"
            context.facts["caution"] = (
                f"carving loses to static pruning: {lost} of what its layers say is lost, {pruned} with the same "
                "neurons for every token"
            )

    # ------------------------------------------------------------------ configuration
    def _is_share(self) -> bool:
        return isinstance(self.active, float)

    def _refuse(self, what: str, fix: str) -> MoecError:
        return MoecError("M203", what, str(self), fix)

    def check_settings(self) -> None:
        shared = self.shared or 0
        if type(self.experts) is not int or type(shared) is not int or self.experts < 2:
            raise self._refuse("experts and shared count parts", "write for example carve(experts=16, shared=2)")
        if not 0 <= shared <= self.experts:
            what = f"shared={shared} of {self.experts} experts is not possible"
            raise self._refuse(what, f"set shared between 0 and {self.experts}, or leave it out")
        if self._is_share() and not 0 < self.active < 1:
            what = f"active={self.active} is no share of the experts, and no number of them"
            raise self._refuse(what, f"write active=0.5, or a whole number up to {self.experts}")
        if not self._is_share() and (type(self.active) is not int or not max(1, shared) <= self.active <= self.experts):
            what = f"active={self.active} of {self.experts} experts, {shared} of them shared, is not possible"
            raise self._refuse(what, f"set active between {max(1, shared)} and {self.experts}")
        for value, known, word in ((self.partition, PARTITIONS, "partition"), (self.router, ROUTERS, "router")):
            if value not in known:
                raise self._refuse(f"there is no {word} {value!r}", did_you_mean(str(value), list(known)))

    def check_calibration(self, calibration: Calibration) -> None:
        require_tokens(calibration.windows().numel(), self.experts, calibration.text.file)

    def _check_network(self, ffn: Ffn) -> None:
        """Raise M203 for a width that does not divide, and for a router that cannot be written."""
        if ffn.intermediate % self.experts:
            near = [n for n in range(2, ffn.intermediate + 1) if ffn.intermediate % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.experts))[:2])
            what = f"{self.experts} experts do not divide the {ffn.intermediate} neurons of {ffn.path}"
            raise self._refuse(what, f"use {' or '.join(f'experts={n}' for n in near)}")
        if self.router == "analytical" and (why := why_not_analytical(ffn)):
            raise MoecError("M203", f"router=analytical cannot be written: {why}", ffn.path, "use router=ridge")

    def _mixtures(self, program: Program, context: Context, seed: int) -> list[Place]:
        """The mixtures whose experts are cut, each expert alike: a share is not spread over them."""
        active = round(self.active * self.experts) if self._is_share() else int(self.active)
        how, found = self._carving(max(active, self.shared or 0, 1), seed), list[Place]()
        for node in moe_nodes(program):
            why = FinerPlace.why_not(program, node, self.experts)
            why = why or "router=analytical is for dense networks" * (self.router == "analytical")
            if why:
                context.miss(node, why)
            else:
                found.append(FinerPlace(program, node, how, str(self)))
        return found

    def _carving(self, active: int, seed: int) -> Carving:
        """One network's settings."""
        how = self.partition, self.router, self.compensate, self.refit
        return Carving(self.experts, self.shared, active, *how, seed)

    # ------------------------------------------------------------------ the budget
    def _counts(
        self, program: Program, ffns: list[Ffn], batches: list[dict[str, Tensor]], seed: int, context: Context
    ) -> list[int]:
        """How many experts a token uses in each network. Where the user allows only so much, and the sum of what the
        networks cost is more, experts are given up in fewer places than the share asks for."""
        if isinstance(self.active, int) or not ffns:
            return [int(self.active)] * len(ffns)
        least = max(1, self.shared or 0)
        usual = min(max(least, round(self.active * self.experts)), self.experts - 1)
        curves = cost_curves(program, ffns, batches, self._carving(usual, seed))
        sizes, share = [ffn.hidden * ffn.intermediate for ffn in ffns], float(self.active)
        counts = spread(curves, least, share, sizes)
        if context.max_kl is None or LOGITS not in program.outputs:
            return counts

        def cost() -> float:
            return sum(float(c[n - 1]) for c, n in zip(curves, counts, strict=True)) * (_FITTED if self.refit else 1)

        while cost() > context.max_kl and share < 1:
            share = min(1.0, share + _STEP)
            counts = spread(curves, least, share, sizes)
        if share > self.active:
            context.facts["given_up"] = [{"asked": self.active, "active": share, "max_kl": context.max_kl}]
        return counts
