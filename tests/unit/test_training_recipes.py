"""Recipes: every error says where, what was found and what was expected; the shipped ones are the papers' numbers."""

from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder
from weft.training.chain import read_chain
from weft.training.config import RECIPES as KINDS
from weft.training.config import override, read_recipe, read_table
from weft.training.discriminator import PatchDiscriminator
from weft.training.recipe_files import RecipeFile
from weft.training.settings import RecipeError, describe, to_table, to_toml

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


def demo(name: str = "demo_lvdm_autoencoder", *assignments: str):
    table = read_table(RECIPES / f"{name}.toml")
    override(table, list(assignments))
    return read_recipe(table, "r.toml")


def test_the_shipped_chain_names_recipes_that_build_on_each_other():
    chain = read_chain(RECIPES / "demo.toml")
    assert chain is not None
    first, second = (RecipeFile(RECIPES / name, []).recipe for name in chain.recipes)
    assert second.autoencoder.path == f"runs/{Path(chain.recipes[0]).stem}"
    assert (first.task, second.task) == ("autoencoder", "text_to_video")


SINGLE = sorted(path for path in RECIPES.glob("*.toml") if path.name != "demo.toml")


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_survive_toml(path, tmp_path):
    recipe = read_recipe(read_table(path), path.name)
    copy = tmp_path / "copy.toml"
    copy.write_text(to_toml(to_table(recipe)))
    assert read_recipe(read_table(copy), "copy") == recipe


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.stpes=3", "r.toml: run.stpes: unknown key, did you mean 'steps'?"),
        ("zzz=3", "r.toml: zzz: unknown key, expected one of task, system, seed, data, network"),
        ("optimization.learning_rate=0", "optimization.learning_rate: found 0.0, expected more than 0"),
        ("optimization.learning_rate=nan", "optimization.learning_rate: found nan, expected a finite number"),
        ("optimization.betas=[0.5]", r"optimization.betas: found \[0.5\], expected a list of 2 values"),
        ("optimization.betas=[0.5, 1.0]", "optimization.betas: found 1.0, expected at most 0.9999"),
        ("run.steps=0", "run.steps: found 0, expected at least 1"),
        ("run.steps=1.5", "run.steps: found 1.5, expected a whole number"),
        ("run.steps=true", "run.steps: found True, expected a whole number"),
        ("run.precision=fp8", "run.precision: found 'fp8', expected one of 'auto', 'float32', 'bf16'"),
        ("data.kind=webvid", "data.kind: found 'webvid', expected one of 'moving_shapes', 'folder'"),
        ("task=vae", "r.toml: task: found 'vae', expected one of 'autoencoder', 'text_to_video'"),
        ("network.downsample=[4, 8]", r"network.downsample: found \[4, 8\], expected a list of 3 values"),
        ("run=3", "run: found 3, expected a section"),
        ("run.steps", "--set run.steps: expected section.key=value"),
        ("seed.x=1", "--set seed.x=1: seed is no section"),
    ],
)
def test_mistakes_are_named(assignment, message):
    with pytest.raises(RecipeError, match=message):
        demo("demo_lvdm_autoencoder", assignment)


def test_missing_values_and_sections_are_named():
    table = read_table(RECIPES / "demo_lvdm_autoencoder.toml")
    del table["run"]["steps"]
    with pytest.raises(RecipeError, match="r.toml: run.steps: missing"):
        read_recipe(table, "r.toml")
    del table["run"]
    with pytest.raises(RecipeError, match="r.toml: run: missing"):
        read_recipe(table, "r.toml")


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        read_table(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="not a TOML recipe"):
        read_table(tmp_path)
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(RecipeError, match=r"broken.toml: not a TOML recipe: .*line 1"):
        read_table(tmp_path / "broken.toml")


def test_overrides_keep_types():
    recipe = demo("demo_lvdm_autoencoder", "run.precision=float32", "optimization.learning_rate=1", "data.size=32")
    assert recipe.run.precision == "float32"
    assert recipe.optimization.learning_rate == 1.0 and isinstance(recipe.optimization.learning_rate, float)
    assert recipe.data.size == 32


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_setting_is_documented(kind):
    lines = describe(kind)
    parts = [part for part in "\n".join(lines).split("\n\n") if not part.startswith("[network]")]
    own = [line for part in parts for line in part.splitlines() if "=" in line]
    assert len(own) > 25
    assert not [line for line in own if "see the network" in line]
    assert not [line for line in lines if "=" in line and "#" not in line]


def test_released_networks_have_their_parameter_counts():
    recipe = demo("lvdm_autoencoder_sky")
    with torch.device("meta"):
        autoencoder, discriminator = (
            VideoAutoencoder(recipe.network),
            PatchDiscriminator(recipe.loss.discriminator_channels),
        )
    assert sum(p.numel() for p in autoencoder.parameters()) == 19_446_759
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
