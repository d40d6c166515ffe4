"""How healthy the routers of a model are, on real text: `moec routers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.compiler.window_memory import windows_at_once
from moec.errors import MoecError
from moec.experts.routed_text import RoutedText
from moec.frontend.source import Source
from moec.pipeline.calibration import BATCH
from moec.program.decoder_signature import IDS, text_inputs
from moec.progress import Progress
from moec.report.artefacts import MANIFEST
from moec.routing.alarms import Alarm, alarms_of, thresholds
from moec.routing.drift import Drift, DriftTally
from moec.routing.figures import RouterFigures, figures_of
from moec.routing.tally import Choice, RouterTally
from moec.startup import seldom_collected
from moec.text.corpus import Corpus, corpus_of

TOKENS, WINDOW = 16384, 256
_AT_ONCE = 16384  # tokens whose activations lie in memory


@dataclass(frozen=True)
class Text:
    """A text that was read: the name of its domain, its file, the file's SHA-256, and how many tokens were seen."""

    name: str
    file: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class RouterReport:
    """Routers of a model on texts.

    Attributes:
        model: as it was named. texts: what was read. window: tokens that the model saw at a time.
        layers: the figures of each mixture, in the order of the model.
        alarms: warnings. versus: another model on the same tokens, empty without one. drift: of each layer, beside it.
        other: the other model's own figures.
    """

    model: str
    texts: tuple[Text, ...]
    window: int
    layers: tuple[RouterFigures, ...]
    alarms: tuple[Alarm, ...]
    versus: str = ""
    drift: tuple[Drift, ...] = ()
    other: tuple[RouterFigures, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = dataclasses.asdict(self)
        return {**found, "thresholds": thresholds(), "units": {"load": "share of all choices", "bits": "bits"}}


def routers(
    model: Any,
    texts: Mapping[str, str | Path] | Sequence[str | Path] | str | Path,
    *,
    versus: Any = None,
    tokens: int = TOKENS,
    window: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **opening: Any,
) -> RouterReport:
    """What every router of a model does with a text: load, entropy, dead experts and more, see
    `moec.routing.figures.RouterFigures`. Each weight is read once for every 16,384 tokens, and none is kept.

    Args:
        model: see `moec.compiler.open.open_source`, which takes `opening`.
        texts: files, or files by the name of their domain: UTF-8, or token ids in .npy, .npz or .safetensors. With
            several, `specialisation` says how much experts know of domains.
        versus: another model with as many mixtures and experts, run on the same tokens: how far choices have moved.
        tokens: of each text, at most; 0 for all.
        window: tokens that the model sees at a time; 256, or its whole context where that is less, if None.
        seed: of the shuffles that say what specialisation is by chance.

    Raises:
        MoecError: M201 for a model without a mixture, an engine, models that do not match, or a window that is longer
            than the model's context or needs more memory than there is; M204 or M211
            for a text that cannot be read, and for a model that takes no tokens.
    """
    if tokens < 0:
        raise MoecError("M201", f"{tokens} tokens are no part of a text", f"--tokens {tokens}", "--tokens 0 for all")
    if window is not None and window < 2:
        what = f"a window of {window} tokens: none of them follows another"
        raise MoecError("M201", what, f"--window {window}", f"2 at least, as --window {WINDOW}")
    progress = progress or Progress()
    with seldom_collected():
        progress.stage("capture")
        source = _opened(model, opening)
        named = _named(texts)
        corpora = {name: corpus_of(file, source) for name, file in named.items()}
        beside = _opened(versus, opening) if versus is not None else None
        window = _window(source, beside, window)
        first, other = RoutedText(source.capture()), None
        if beside is not None:
            for corpus in corpora.values():
                _require_same_tokens(corpus, beside)
            other = RoutedText(beside.capture())
            _require_alike(first, other)
        progress.done(f"{len(first.mixtures)} mixtures")
        run = _Run(first, other, window, tokens, progress)
        for number, corpus in enumerate(corpora.values()):
            run.read(corpus, number)
        seen = tuple(Text(n, c.name, c.sha256, k) for (n, c), k in zip(corpora.items(), run.seen, strict=True))
        return run.report(str(source.text), seen, seed, beside.text if beside is not None else "")


class _Run:
    """One or two models over all texts, group of windows by group."""

    def __init__(
        self, first: RoutedText, other: RoutedText | None, window: int, tokens: int, progress: Progress
    ) -> None:
        self._models = [m for m in (first, other) if m is not None]
        self._window, self._tokens, self._progress = window, tokens, progress
        self._together = min(windows_at_once(m.program, window, BATCH) for m in self._models)
        self._tallies = [{m.name: RouterTally(m.experts, m.top_k) for m in model.mixtures} for model in self._models]
        self._drift = [DriftTally(m.experts) for m in first.mixtures] if other else []
        self.seen: list[int] = []

    def read(self, corpus: Corpus, domain: int) -> None:
        """Run one text, of the domain of this number."""
        self.seen.append(0)
        batches = _windows(corpus, self._window, self._tokens, self._together)
        at_once = max(1, _AT_ONCE // (self._window * self._together))
        while group := tuple(islice(batches, at_once)):
            self._progress.stage(f"read {corpus.name}")
            found = [self._choices(k, group) for k in range(len(self._models))]
            for tallies, choices in zip(self._tallies, found, strict=True):
                for name, each in choices.items():
                    for choice, ids in zip(each, group, strict=True):
                        _add(tallies[name], choice, ids, domain)
            for drift, *both in zip(self._drift, *(c.values() for c in found), strict=False):
                for pair in zip(*both, strict=True):
                    drift.add(*pair)
            self.seen[-1] += sum(ids.numel() for ids in group)
            self._progress.done(f"{self.seen[-1]:,} tokens")

    def _choices(self, model: int, group: tuple[Tensor, ...]) -> dict[str, list[Choice]]:
        routed = self._models[model]
        samples = [text_inputs(routed.program.inputs, ids) for ids in group]
        found = routed.run(samples, alike=not routed.similarity)
        return {m.name: found[m.name] for m in routed.mixtures}

    def report(self, model: str, texts: tuple[Text, ...], seed: int, versus: str) -> RouterReport:
        """All figures."""
        names = [text.name for text in texts]
        figures = [
            tuple(figures_of(n, t, names, routed.similarity[n], seed) for n, t in tallies.items())
            for routed, tallies in zip(self._models, self._tallies, strict=True)
        ]
        layers, other = figures[0], figures[1] if versus else ()
        drift = tuple(d.found(f.layer) for d, f in zip(self._drift, layers, strict=False))
        alarms = tuple(alarm for layer in layers for alarm in alarms_of(layer))
        return RouterReport(model, texts, self._window, layers, alarms, versus, drift, other)


def _add(tally: RouterTally, choice: Choice, ids: Tensor, domain: int) -> None:
    """Count the windows of a batch one by one, for specialisation is shuffled by windows."""
    step, width = ids.shape[1], len(choice.ids)
    for k in range(0, width, step):
        shares = None if choice.shares is None else choice.shares[k : k + step]
        tally.add(Choice(choice.experts, choice.ids[k : k + step], choice.weights[k : k + step], shares), domain)


def _window(source: Source, beside: Source | None, asked: int | None) -> int:
    """Tokens of a window. Raises M201 where the positions of a model end before it does."""
    reach = {s.text: s.facts().context for s in (source, beside) if s is not None and s.facts().context}
    name = min(reach, key=lambda text: reach[text], default="")
    longest = reach.get(name, 0)
    if asked is None:
        return min(WINDOW, longest or WINDOW)
    if longest and asked > longest:
        what = f"the positions of {name} end at {longest:,} tokens"
        fix = f"--window {min(WINDOW, longest)}, or up to {longest} where the memory is enough"
        raise MoecError("M201", what, f"--window {asked}", fix)
    return asked


def _windows(corpus: Corpus, window: int, tokens: int, together: int) -> Iterator[Tensor]:
    """Batches of whole windows; a text shorter than one is one."""
    for number, ids in enumerate(corpus.windows(window, tokens, together)):
        if ids.shape[1] == window or not number:
            yield ids


def _named(texts: Mapping[str, str | Path] | Sequence[str | Path] | str | Path) -> dict[str, str]:
    """Files by the name of their domain, which is the file's own name where none is given. Raises M201."""
    if isinstance(texts, Mapping):
        found = {str(name): str(file) for name, file in texts.items()}
    else:
        files = [texts] if isinstance(texts, str | Path) else [*texts]
        found = {Path(file).stem: str(file) for file in files}
        if len(found) < len(files):
            raise MoecError("M201", "two texts have one name", "--text", "name them: --text law=FILE --text code=FILE")
    if not found:
        raise MoecError("M201", "there is no text to look at routers with", "--text", "name one with --text FILE")
    return found


def _opened(model: Any, opening: Mapping[str, Any]) -> Source:
    """Raises M201 for an engine, whose routers are inside its operators."""
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).is_file():
        fix = "name the model that it was compiled from; `moec inspect ENGINE` shows it"
        raise MoecError("M201", "an engine does not tell what its routers choose", str(model), fix)
    return open_source(model, **opening)


def _require_same_tokens(corpus: Corpus, other: Source) -> None:
    """Raise M201 where another model reads a text as other tokens; one without a tokenizer reads what it is given."""
    domain, most = other.domains.get(IDS), int(corpus.tokens.max())
    if domain is None or domain.kind != "token" or most < domain.high:
        try:
            same = torch.equal(corpus_of(corpus.name, other).tokens, corpus.tokens)
        except MoecError as error:
            if error.code != "M204":
                raise
            same = True
        if same:
            return
    what = f"{other.text} does not read {corpus.name} as the same tokens"
    raise MoecError("M201", what, "--versus", "compare two checkpoints with one vocabulary")


def _require_alike(first: RoutedText, other: RoutedText) -> None:
    """Raise M201 unless two models have as many mixtures, each of as many experts."""
    counts = [[m.experts for m in routed.mixtures] for routed in (first, other)]
    if counts[0] != counts[1]:
        said = [f"{len(c)} mixtures of {', '.join(map(str, sorted(set(c))))} experts" for c in counts]
        what = f"the models do not match layer by layer: {said[0]} beside {said[1]}"
        fix = "compare two checkpoints of one architecture"
        raise MoecError("M201", what, "--versus", fix)
