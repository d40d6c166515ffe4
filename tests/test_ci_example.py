"""The workflow of examples/ci: its own commands are run here, with a budget that is kept and with one that is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

WORKFLOW = yaml.safe_load((Path(__file__).parents[1] / "examples/ci/engines.yml").read_text())
JOB = WORKFLOW["jobs"]["engine"]
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in JOB["steps"] if "name" in step}


@pytest.fixture(scope="module")
def repository(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workflow finds after its checkout."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "model").symlink_to(llama)
    np.save(folder / "evaluation.npy", np.random.default_rng(0).integers(3, 96, 300))
    return folder


def run(step: str, folder: Path, **values: str) -> subprocess.CompletedProcess[str]:
    """Run a step's command as GitHub's shell does, with other values under `env`."""
    command = re.sub(r"\$\{\{ github\.run_number \}\}", "7", STEPS[step]["run"])
    assert "${{" not in command
    given = {
        "TEXT": "evaluation.npy",
        "PASSES": "quantize(bits=4, group=16)",
        "BUDGET": "--max-kl 0.5",
        "TARGET": "onnxruntime",
        **values,
    }
    here = {
        **os.environ,
        **WORKFLOW["env"],
        **given,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    here["GITHUB_STEP_SUMMARY"] = str(folder / "summary.md")
    return subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=here, capture_output=True, text=True)


@pytest.mark.slow
def test_a_kept_budget_ends_in_an_engine_and_a_report(repository: Path) -> None:
    for step in ("Compile", "Verify", "Summary"):
        done = run(step, repository)
        assert done.returncode == 0, done.stderr
    suite = ElementTree.parse(repository / "report.xml").getroot()[0]
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert "mean KL divergence" in {case.attrib["name"] for case in suite}
    assert (repository / "engine" / "moec.json").exists() and "Close to" in (repository / "summary.md").read_text()


@pytest.mark.slow
def test_a_broken_budget_fails_before_anything_is_there(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(repository / "model")
    (tmp_path / "evaluation.npy").symlink_to(repository / "evaluation.npy")
    done = run("Compile", tmp_path, BUDGET="--max-kl 1e-9")
    assert done.returncode == 1 and "error[M107]" in done.stderr and not (tmp_path / "engine").exists()


def test_only_a_good_engine_is_uploaded_and_the_proof_always() -> None:
    names = list(STEPS)
    assert names.index("Keep the engine") > names.index("Verify") > names.index("Compile")
    assert STEPS["Keep the proof"]["if"] == "always()" and "if" not in STEPS["Keep the engine"]
    assert (
        STEPS["Keep the engine"]["with"]["path"] == "engine/"
        and "report.xml" in STEPS["Keep the proof"]["with"]["path"]
    )


def test_every_target_and_extra_exists() -> None:
    import tomllib

    from moec import registry
    from moec.targets.target import Target

    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for row in JOB["strategy"]["matrix"]["include"]:
        goal = Target.parse(row["target"])
        assert registry.find("backends", goal.backend)().options(goal) == [] and (
            not row["extra"] or row["extra"].strip("[]") in extras
        )


def test_the_pipeline_and_its_options_are_real() -> None:
    from moec.cli.build import compile_command
    from moec.cli.prove import verify_command
    from moec.pipeline.pipeline import Pipeline

    assert Pipeline.parse(WORKFLOW["env"]["PASSES"])
    known = {o for command in (compile_command, verify_command) for p in command.params for o in p.opts}
    used = re.findall(
        r"--[a-z-]+",
        " ".join(str(step.get("run", "")) for name, step in STEPS.items() if name != "Install")
        + WORKFLOW["env"]["BUDGET"],
    )
    assert used and set(used) <= known
