"""A path that does not exist is answered with what lies near it, and could have been meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.files.nearby import is_model, nearby


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with a config, a file of Python, a text, and an empty folder of a near name."""
    for name in ("models/mixtral", "models/mixtral-old", "models/engines"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("models/mixtral/config.json", "models/network.py", "models/notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("models/mixtrel", "did you mean models/mixtral/?"),
        ("models/Mixtral/", "did you mean models/mixtral/?"),
        ("model/mixtral", "did you mean models/mixtral/?"),  # the first folder that is not there
        ("models/netwrk.py", "did you mean models/network.py?"),
        ("models/notez.txt", "look again"),  # a text is no model
        ("models/zzz", "look again"),
        ("nowhere/else/zzz", "look again"),
    ],
)
def test_the_nearest_names_of_the_parent_folder(path: str, advice: str, place: Path) -> None:
    assert nearby(path, "look again", is_model) == advice


def test_whole_paths_and_any_place(place: Path) -> None:
    models = place / "models"
    assert nearby(models / "mixtrel", "") == f"did you mean {models}/mixtral/ or {models}/mixtral-old/?"
    assert nearby("models/notez.txt", "") == "did you mean models/notes.txt?"
