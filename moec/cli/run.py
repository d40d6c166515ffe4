"""`moec run`: text from a decoder, outputs from any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import click

from moec.cli.console import common, emit, say
from moec.cli.settings import WHOLE, trust_options
from moec.errors import MoecError, reason_of
from moec.files.nearby import nearby
from moec.files.regular import open_regular


@click.command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--tokens", help="The prompt as token ids, e.g. 1,2,3; needs no tokenizer.")
@click.option("--max-tokens", type=WHOLE, default=64, show_default=True, help="Tokens to write at most.")
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token, above 0 one is drawn.",
)
@click.option("--top-k", type=WHOLE, default=0, help="Draw from this many of the likeliest tokens.  [default: all]")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    help="Draw from the likeliest tokens that have this share together.  [default: all]",
)
@click.option(
    "--inputs",
    "file",
    type=click.Path(path_type=Path),
    help="Without a prompt: an .npz with one array an input; random inputs by default.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Without a prompt: write the outputs into this .npz.")
@click.option(
    "--seed", type=WHOLE, default=0, show_default=True, help="Of random inputs, and of the tokens that are drawn."
)
@trust_options
@common
def run_command(
    engine: Path, prompt: str | None, tokens: str | None, file: Path | None, output: Path | None, **options: Any
) -> None:
    """Continue PROMPT with a decoder: the text on stdout as it comes, its speed on stderr.

    Without a prompt, run ENGINE once and print the shape, mean and spread of each output.
    """
    as_json, seed = options.pop("as_json"), options.pop("seed")
    opening = {name: options.pop(name) for name in ("trust_remote_code", "allow_pickle")}
    if prompt is None and tokens is None:
        _forward(engine, file, output, seed, as_json, opening)
        return
    if file or output or (prompt is not None and tokens is not None):
        raise MoecError(
            "M201", "PROMPT, --tokens and --inputs or --output exclude each other", "moec run", "give one of them"
        )
    _write(engine, prompt if tokens is None else _ids(tokens), seed, as_json, **options)


def _write(
    engine: Path,
    prompt: Any,
    seed: int,
    as_json: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    quiet: bool,
) -> None:
    from moec import api
    from moec.execution.generation import Sampling

    written, pieces = api.write(
        engine, prompt, max_tokens=max_tokens, sampling=Sampling(temperature, top_k, top_p, seed)
    )
    for piece in pieces:
        say("" if as_json else piece, nl=False)
    if as_json:
        emit(written.to_dict())
        return
    say()
    if not quiet:
        say(str(written), err=True)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise MoecError(
            "M201",
            f"cannot read the token ids {text!r}",
            "--tokens",
            "write whole numbers with commas, e.g. --tokens 1,2,3",
        ) from None


def _forward(
    engine: Path, file: Path | None, output: Path | None, seed: int, as_json: bool, opening: dict[str, Any]
) -> None:
    import numpy as np

    from moec import api

    opened = api.load(engine)
    inputs = _read(file) if file else {k: v.numpy() for k, v in api.sample(engine, seed, **opening).items()}
    outputs = _outputs(opened, inputs, str(file or engine))
    if output:
        np.savez(output, **outputs)
    rows = {
        k: {"shape": list(v.shape), "dtype": str(v.dtype), "mean": float(v.mean()), "std": float(v.std())}
        for k, v in outputs.items()
    }
    if as_json:
        emit({"outputs": rows})
        return
    for name, row in rows.items():
        say(f"{name}: {row['dtype']}{row['shape']} mean {row['mean']:.4g} std {row['std']:.4g}")


def _outputs(engine: Any, inputs: dict[str, Any], where: str) -> Any:
    """What an engine makes of arrays. Raises M211 where its runtime refuses them."""
    try:
        return engine(**inputs)
    except MoecError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        reason = reason_of(error, 300)
        raise MoecError("M211", f"the engine does not run: {reason}", where, "give other inputs") from error


def _read(file: Path) -> dict[str, Any]:
    """The arrays of an .npz by name. Raises M211 for anything else, and for one that takes more than the memory."""
    import numpy as np

    from moec.execution.memory import total_bytes

    fix = "write it with numpy.savez(file, name=array, …)"
    try:
        with open_regular(file) as opened:
            with ZipFile(opened) as archive:
                size_bytes = sum(entry.file_size for entry in archive.infolist())
            if size_bytes > total_bytes() // 2:
                raise ValueError(f"its arrays take {size_bytes} bytes")
            opened.seek(0)
            return dict(np.load(opened, allow_pickle=False))
    except Exception as error:  # zip files, headers of arrays and their values each have exceptions of their own
        what = f"not a readable .npz: {reason_of(error)}"
        if isinstance(error, FileNotFoundError):
            what, fix = "there is no such file", nearby(file, fix, Path.is_file)
        raise MoecError("M211", what, str(file), fix) from error
