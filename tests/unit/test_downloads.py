"""Which files a workflow needs that do not come with the pack."""

import json
from pathlib import Path

import pytest

from weft.tools.downloads import beside, needed

FILE = {"name": "big.safetensors", "url": "https://huggingface.co/a/b/resolve/main/big.safetensors", "directory": "vae"}
SIDECAR = "[[notes]]\ntitle = 'T'\ntext = 'M'\n" + "".join(
    f"[[models.{key}]]\n" + "".join(f"{name} = '{value}'\n" for name, value in FILE.items()) for key in (1, 2)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A graph whose first loader names an offered file; its second could be changed to it."""
    graph = {"1": {"inputs": {"vae_name": FILE["name"]}}, "2": {"inputs": {"vae_name": "small", "vae": ["1", 0]}}}
    (tmp_path / "A.json").write_text(json.dumps(graph))
    return tmp_path / "A.json"


def test_offered_files_that_the_graph_names_are_needed(path: Path):
    path.with_suffix(".toml").write_text(SIDECAR)
    assert needed(path) == {"1": [FILE]}
    assert beside(path) == {"notes": [{"title": "T", "text": "M"}], "models": {"1": [FILE], "2": [FILE]}}


def test_nothing_beside_a_graph_means_nothing_is_needed(path: Path):
    assert beside(path) == {} and needed(path) == {}
