"""The action of the repository, and the workflow of examples/ci that uses it.

Its own steps are run here as a runner of GitHub runs them, with a budget that is kept and with one that is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from tests.pages import blocks, prose

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOW = yaml.safe_load((ROOT / "examples/ci/engines.yml").read_text())
JOB = WORKFLOW["jobs"]["engine"]
USES = next(step for step in JOB["steps"] if step.get("id") == "moec")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
GITHUB = {"run_number": "7", "job": "engine", "action_path": str(ROOT), "server_url": "https://git.example"}
GITHUB["workflow_ref"] = "a/b/.github/workflows/engines.yml@main"


class Runner:
    """What of a runner of GitHub Actions a composite action meets: its shell, its files, and the values in `${{ }}`."""

    def __init__(self, folder: Path, **given: str) -> None:
        unknown = set(given) - set(ACTION["inputs"])
        assert not unknown, unknown
        self.folder, self.failed, self.said, self.tools = folder, "", "", Path(sys.executable).parent
        self.uploads: dict[str, list[str]] = {}
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, dict[str, str]] = {}
        self.inputs = {n: given.get(n, self.value(i.get("default", ""))) for n, i in ACTION["inputs"].items()}
        self.summary = folder / "summary.md"

    def value(self, text: str) -> str:
        """A text with the values of its expressions."""
        return re.sub(r"\$\{\{ (.+?) \}\}", lambda m: str(self.look_up(m[1])), text)

    def look_up(self, name: str) -> str:
        where, _, rest = name.partition(".")
        if where == "steps":
            step, _, output = rest.partition(".outputs.")
            return self.outputs[step][output]
        return str({"inputs": self.inputs, "github": GITHUB}[where][rest]) if where in ("inputs", "github") else ""

    def wants(self, step: Mapping[str, Any]) -> bool:
        """Whether a step is run, by its `if` and by what failed before it."""
        condition = step.get("if", "")
        if self.failed and "always()" not in condition:
            return False
        terms = [term.strip() for term in condition.split("&&") if term.strip() not in ("", "always()")]
        pairs = [re.fullmatch(r"(\S+) (==|!=) '(.*)'", term) for term in terms]
        assert all(pairs), condition
        return all((self.look_up(m[1]) == m[3]) is (m[2] == "==") for m in pairs if m)

    def run(self) -> Runner:
        for step in ACTION["runs"]["steps"]:
            if step["name"] in ("Python", "Install") or not self.wants(step):
                continue
            if "run" in step:
                self.shell(step)
            else:
                self.uploads[self.value(step["with"]["name"])] = self.value(step["with"]["path"]).split()
        return self

    def shell(self, step: Mapping[str, Any]) -> None:
        """Run a step's commands as `shell: bash` says, with files of its own for outputs and summary."""
        files = {name: self.folder / f"{step['name']}.{name}" for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.touch()
        given = {**{n: self.value(v) for n, v in step.get("env", {}).items()}, **{n: str(f) for n, f in files.items()}}
        path = f"{self.tools}:{os.environ['PATH']}"
        here = {**os.environ, **given, "PATH": path, "OMP_NUM_THREADS": "1", "GITHUB_ACTIONS": "true"}
        assert "${{" not in step["run"] and step["shell"] == "bash"
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, cwd=self.folder, env=here, capture_output=True, text=True)
        self.said += done.stdout + done.stderr
        self.failed = self.failed or (f"{step['name']} {done.returncode}" if done.returncode else "")
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        self.outputs[step.get("id", "")] = dict(line.split("=", 1) for line in lines)
        self.summary.open("a").write(files["GITHUB_STEP_SUMMARY"].read_text())


@pytest.fixture
def checkout(llama: Path, tmp_path: Path) -> Path:
    """What the workflow finds after its checkout."""
    (tmp_path / "a model").symlink_to(llama)
    np.save(tmp_path / "evaluation.npy", np.random.default_rng(0).integers(3, 96, 300))
    return tmp_path


@pytest.mark.slow
def test_it_ends_in_an_engine_a_proof_and_a_summary(checkout: Path) -> None:
    pytest.importorskip("in_toto_attestation", reason="in-toto-attestation, of the extra attest, is not here")
    run = Runner(checkout, model="a model", tolerance="1e-3", arguments="--seed 3 --no-cache").run()
    assert run.failed == "", run.said
    suite = ElementTree.parse(checkout / "engine.xml").getroot()[0]
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert "Equal to" in run.summary.read_text() and "```mermaid" in run.summary.read_text()
    assert "https://git.example/a/b/.github" in (checkout / "engine.intoto.json").read_text()
    assert '"seed": 3' in (checkout / "engine/moec.json").read_text() and (checkout / "engine/README.md").exists()
    assert run.uploads["engine-engine"] == ["engine/"] and all(
        (checkout / f).exists() for f in run.uploads["proof-engine"]
    )
    assert run.uploads["proof-engine"] == [f"engine.{kind}" for kind in ("xml", "html", "intoto.json", "cdx.json")]
    outputs = {name: run.value(output["value"]) for name, output in ACTION["outputs"].items()}
    assert (outputs["engine"], outputs["verdict"], outputs["target"]) == ("engine", "verified", "onnxruntime")
    assert float(outputs["deviation"]) > 0 and int(outputs["size-bytes"]) > 1000


def test_a_failure_ends_it_before_anything_is_there(checkout: Path) -> None:
    run = Runner(checkout, model="nowhere").run()
    assert run.failed == "Compile 2" and not (checkout / "engine").exists()
    assert "::error title=moec M204::" in run.said and "error[M204]" in run.summary.read_text()
    assert list(run.uploads) == ["proof-engine"]  # what there is of it; the engine is kept only when all went well


def tool(folder: Path, name: str, does: str) -> Path:
    """A program that keeps its arguments, a line each, and does this then. Returns the file of the arguments."""
    folder.mkdir(exist_ok=True)
    kept = folder / f"{name}.arguments"
    (folder / name).write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >> '{kept}'\n{does}\n")
    (folder / name).chmod(0o755)
    return kept


def test_a_slash_and_lines_of_arguments_are_understood(tmp_path: Path) -> None:
    row = '{"engines": [{"verdict": "verified", "target": "onnxruntime", "deviation": 1, "size_bytes": 2}]}'
    told = tool(tmp_path / "bin", "moec", f"[ $1 = ls ] && echo '{row}' || true")
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    run = Runner(tmp_path, model="m", engine="out/engine//", arguments="--seed 3\n--input *.py\n--no-cache\n")
    run.tools = tmp_path / "bin"
    assert run.run().failed == "", run.said
    words = told.read_text().splitlines()
    assert words[words.index("--seed") :][:5] == ["--seed", "3", "--input", "*.py", "--no-cache"]
    assert {"out/engine", "out/engine.xml", "out/engine.html"} <= set(words) and "out/engine//" not in words
    assert run.uploads["engine-engine"] == ["out/engine/"] and "out/engine.cdx.json" in run.uploads["proof-engine"]


@pytest.mark.parametrize(
    ("given", "here", "installed"),
    [
        ({"install": "a.whl"}, True, [["a.whl"], ["moec[attest]"]]),
        ({"extras": "tensorrt-rtx"}, True, [["moec[tensorrt-rtx,attest]"]]),
        ({"extras": "", "attest": "false"}, True, []),
        ({"extras": "tensorrt-rtx"}, False, [["-c", f"{ROOT}/constraints.txt", f"{ROOT}[tensorrt-rtx,attest]"]]),
    ],
)
def test_what_attesting_needs_is_installed(
    given: dict[str, str], here: bool, installed: list[list[str]], tmp_path: Path
) -> None:
    told = tool(tmp_path / "bin", "python", "" if here else "[ $3 != show ]")
    if here:
        tool(tmp_path / "bin", "moec", "")
    step, run = STEPS["Install"], Runner(tmp_path, model="m", **given)
    values = {name: run.value(value) for name, value in step["env"].items()}
    bash = ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    subprocess.run(bash, env={**values, "PATH": str(tmp_path / "bin")}, check=True)
    calls = told.read_text().split("-m\npip\n")[1:] if told.exists() else []
    assert [call.splitlines()[1:] for call in calls if call.startswith("install\n")] == installed


@pytest.mark.repeats
@pytest.mark.parametrize(("most", "failed", "said"), [("0.5", "", "Close to"), ("1e-9", "Compile 1", "error[M107]")])
def test_a_budget_on_a_text(most: str, failed: str, said: str, checkout: Path) -> None:
    passes = "quantize(bits=4, group=16)"
    run = Runner(
        checkout, model="a model", text="evaluation.npy", passes=passes, attest="false", **{"max-kl": most}
    ).run()
    assert run.failed == failed and said in run.summary.read_text()
    assert (checkout / "engine").exists() is (not failed) and ("engine-engine" in run.uploads) is (not failed)


def test_values_are_never_read_as_code() -> None:
    runs = [step["run"] for step in STEPS.values() if "run" in step]
    assert runs and not any("${{" in text for text in runs)
    assert all(step["shell"] == "bash" for step in STEPS.values() if "run" in step)


def test_every_input_is_used_and_every_value_declared() -> None:
    text = yaml.safe_dump(ACTION["runs"])
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    assert all(i["description"] for i in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


def test_every_flag_is_one_of_the_verb() -> None:
    from tests.page_names import problems_of_flags

    text = "\n".join(step["run"] for step in STEPS.values() if "run" in step and step["name"] != "Install")
    for verb, start, end in (("compile", "given=(--out", "read -rd"), ("verify", "given=(--seed", "moec verify")):
        flags = re.findall(r"--[a-z-]+", text[text.index(start) : text.index(end)])
        assert len(flags) > 5 and problems_of_flags(f"moec {verb} {' '.join(flags)}") == []


def test_the_page_names_every_input_and_output_and_gives_what_there_is() -> None:
    page = ROOT / "docs/ci.md"
    (step,) = yaml.safe_load(next(b.text for b in blocks(page) if b.value == "step.yml"))
    assert set(step["with"]) <= set(ACTION["inputs"])
    for part, head in (("inputs", "| input |"), ("outputs", "| output |")):
        rows = prose(page).partition(head)[2].partition("\n\n")[0].splitlines()[2:]
        assert {name.strip() for row in rows for name in row.split("|")[1].split(",")} == set(ACTION[part])


def test_the_workflow_gives_what_the_action_takes() -> None:
    from moec import registry
    from moec.pipeline.pipeline import Pipeline
    from moec.targets.target import Target

    given = USES["with"]
    assert set(given) <= set(ACTION["inputs"]) and Pipeline.parse(given["passes"])
    assert {name for name, item in ACTION["inputs"].items() if item.get("required")} <= set(given)
    for row in JOB["strategy"]["matrix"]["include"]:
        goal = Target.parse(row["target"])
        assert registry.find("backends", goal.backend)().options(goal) == []
        assert set(row["extras"].split(",")) <= set(EXTRAS)
    assert ACTION["inputs"]["extras"]["default"] in EXTRAS
