"""From a prompt to text, with an engine folder: its tokenizer, its model's limits, and tokens turned into text as they
come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.engine import Engine
from moec.execution.generation import GREEDY, Sampling, clocked, generate
from moec.execution.parts import PartsEngine, respond
from moec.frontend.source import Tokenizer
from moec.layouts import model_folder
from moec.program.decoder_signature import IDS
from moec.text.tokenizer import find_facts, find_tokenizer

EARLIER = 8  # tokens of the prompt that may change how the first new one is written


class TextStream:
    """Tokens to text, piece by piece: what comes out, joined, is the text of all tokens.

    A token may be part of a character, or mean something else after others, so a piece is held back until it is whole.

    Args:
        decode: text of a list of tokens.
        earlier: the last tokens before these; their text is not repeated, but what they do to the next one is kept,
            such as a space.
    """

    def __init__(self, decode: Callable[[list[int]], str], earlier: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens, self._done = [*earlier], len(earlier)  # the tokens of the last piece, and those held back

    def add(self, token: int) -> str:
        """The text that is certain now; may be empty."""
        self._tokens.append(token)
        return self._take(whole=False)

    def end(self) -> str:
        """What was held back."""
        return self._take(whole=True)

    def _take(self, whole: bool) -> str:
        before, text = self._decode(self._tokens[: self._done]), self._decode(self._tokens)
        if len(text) <= len(before) or (text.endswith("\N{REPLACEMENT CHARACTER}") and not whole):
            return ""
        self._tokens, self._done = self._tokens[self._done :], len(self._tokens) - self._done
        return text[len(before) :]


@dataclass
class Written:
    """What was written, and how fast. It grows while `Writer.write` is iterated.

    Attributes:
        prompt: tokens of the prompt. tokens: those appended. text: of the appended ones; empty without a tokenizer.
        seconds: for each appended token, how long it was waited for; the first includes the prompt.
        stopped: `end` (the model's end token), `max_tokens` or `context`; empty while it goes on.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seconds: list[float] = field(default_factory=list)
    stopped: str = ""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt a second, until the first new token."""
        return len(self.prompt) / self.seconds[0]

    @property
    def decode_tokens_per_s(self) -> float | None:
        """New tokens a second after the first; None when there is only one."""
        return len(self.seconds[1:]) / sum(self.seconds[1:]) if len(self.seconds) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        timings = {
            "first_token_ms": self.seconds[0] * 1e3, "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s, "total_ms": sum(self.seconds) * 1e3,
        }  # fmt: skip
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt,
            "stopped": self.stopped,
            "timings": timings,
        }

    def __str__(self) -> str:
        decode = f", decode {self.decode_tokens_per_s:.1f} tokens/s" if self.decode_tokens_per_s else ""
        speed = (
            f"prefill {self.prefill_tokens_per_s:.1f} tokens/s (first token after {self.seconds[0] * 1e3:.1f} "
            f"ms){decode}"
        )
        return f"{len(self.prompt)} + {len(self.tokens)} tokens, stopped at {self.stopped}; {speed}"


class Writer:
    """A decoder's engine folder that continues prompts.

    Args:
        engine: the loaded engine.
        folder: where it lies, in any layout.
        source: the model as the manifest names it, for files that are not beside the engine.
    """

    def __init__(self, engine: Engine, folder: Path, source: str) -> None:
        self._engine, self._folder, self._source = engine, model_folder(folder), source
        self.facts = find_facts(self._folder, source, engine.inputs)
        self._tokenizer: Tokenizer | None = None

    def tokens(self, prompt: str) -> list[int]:
        """A text as the model's tokens. Raises M204 without a tokenizer, M211 when the text is none at all."""
        self._tokenizer = self._tokenizer or find_tokenizer(self._folder, self._source)
        found = self._tokenizer.encode_prompt(prompt)
        if not found:
            raise MoecError("M211", "the prompt has no tokens", self._engine.name, "give some text")
        return found

    def write(
        self, prompt: str | Sequence[int], max_tokens: int = 64, sampling: Sampling = GREEDY
    ) -> tuple[Written, Iterator[str]]:
        """Continue a prompt, beside no image; with an encoder, write what answers it.

        Args:
            prompt: text, or its tokens; for those no tokenizer is needed, and without one the pieces are the tokens'
                numbers.
            max_tokens, sampling: see `moec.execution.generation.generate`.

        Returns:
            A record that grows, and the pieces of text, which make it grow.

        Raises:
            MoecError: M204 no tokenizer, M211 no decoder, no tokens, unknown tokens, or more than the context holds.
        """
        ids = self.tokens(prompt) if isinstance(prompt, str) else [*prompt]
        self._check(ids)
        row = torch.tensor([ids], dtype=torch.int64)
        how: Any = {"max_tokens": max_tokens, "eos": self.facts.eos, "sampling": sampling}
        if isinstance(self._engine, EncoderDecoderEngine):
            start = self._start()
            steps = respond(self._engine, {IDS: row}, torch.tensor([start]), context=self.facts.context, **how)
        elif isinstance(self._engine, PartsEngine):  # beside no image
            start = ids[-EARLIER:]
            steps = respond(self._engine, {}, row, context=self.facts.context, **how)
        else:
            start = ids[-EARLIER:]
            steps = generate(self._engine, row, context=self.facts.context, **how)
        written = Written(ids)
        return written, self._pieces(written, (int(token) for token in steps), max_tokens, start)

    def _start(self) -> list[int]:
        """The tokens that the decoder of an encoder-decoder begins with. Raises M204 where no file says them, M211 for
        an encoder that reads no text."""
        engine = self._engine
        if not any(i.name == IDS for i in engine.inputs):
            names = ", ".join(i.name for i in engine.inputs)
            fix = "in Python: moec.execution.parts.respond(engine, inputs, start)"
            raise MoecError("M211", f"its encoder reads no tokens: the inputs are {names}", engine.name, fix)
        if not self.facts.starts:
            what = "neither config.json nor generation_config.json has a decoder_start_token_id"
            raise MoecError("M204", what, str(self._folder), "add it to config.json there")
        return [*self.facts.starts]

    def _check(self, ids: Sequence[int]) -> None:
        known = self.facts.vocabulary or 2**63
        strange = next((i for i in ids if not 0 <= i < known), None)
        if strange is not None:
            raise MoecError(
                "M214", f"no token has the number {strange}", self._engine.name, f"tokens are 0 to {known - 1}"
            )

    def _pieces(self, written: Written, steps: Iterator[int], max_tokens: int, earlier: Sequence[int]) -> Iterator[str]:
        decode = self._decoder()
        stream = TextStream(decode or _numbers, earlier)
        for token, seconds in clocked(steps):
            written.tokens.append(token)
            written.seconds.append(seconds)
            ended = token in self.facts.eos
            written.stopped = "end" if ended else "max_tokens" if len(written.tokens) == max_tokens else "context"
            piece = "" if ended else stream.add(token)
            written.text += piece if decode else ""
            yield piece
        rest = stream.end()
        written.text += rest if decode else ""
        yield rest

    def _decoder(self) -> Callable[[list[int]], str] | None:
        try:
            self._tokenizer = self._tokenizer or find_tokenizer(self._folder, self._source)
        except MoecError:
            return None
        return self._tokenizer.decode


def _numbers(tokens: list[int]) -> str:
    return "".join(f"{token} " for token in tokens)
