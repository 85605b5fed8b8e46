"""Where the loaders look for files: ComfyUI's own folders, `models/weft`, and the models that come with the pack."""

import os
from pathlib import Path

import folder_paths

OWN = "weft"
MOTION = "animatediff_models"
"""Where other packs keep motion modules too."""
SHARED = ("loras", "controlnet")
"""Folders of the core; ours of the same names, inside the models that come with the pack, are one more of each."""
EMBEDDED = Path(__file__).resolve().parent.parent / "demo_models"


def register() -> None:
    """Make the pack's own folder key, keeping paths that the user configured for it."""
    configured = folder_paths.folder_names_and_paths.get(OWN, ([], set()))[0]
    paths = [*configured, os.path.join(folder_paths.models_dir, OWN), str(EMBEDDED)]
    extensions = set(folder_paths.supported_pt_extensions)
    folder_paths.folder_names_and_paths[OWN] = (list(dict.fromkeys(paths)), extensions)
    folder_paths.add_model_folder_path(MOTION, os.path.join(folder_paths.models_dir, MOTION))
    for folder in SHARED:
        folder_paths.add_model_folder_path(folder, str(EMBEDDED / folder))


def choices(folder: str) -> list[str]:
    """File names in the pack's own folders and in one of ComfyUI's, and pipelines, without repetition."""
    shared = {path.relative_to(EMBEDDED) for name in SHARED for path in (EMBEDDED / name).glob("*")}
    own = [name for name in folder_paths.get_filename_list(OWN) if Path(name) not in shared]
    names = [*own, *folder_paths.get_filename_list(folder)]
    return list(dict.fromkeys([*names, *pipelines()]))


def pipelines() -> dict[str, str]:
    """Path by name of the folders in diffusers' layout, which the core keeps in `models/diffusers`."""
    found = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for index in sorted(Path(root).glob("*/model_index.json")):
            found.setdefault(index.parent.name, str(index.parent))
    return found


def find(name: str, folder: str) -> str:
    """Path of a chosen file or pipeline.

    Raises:
        FileNotFoundError: it is in none of the folders.
    """
    path = folder_paths.get_full_path(OWN, name) or folder_paths.get_full_path(folder, name) or pipelines().get(name)
    return path or folder_paths.get_full_path_or_raise(folder, name)


def stamp(name: str | None, folder: str) -> str:
    """Changes when the file does, so that a replaced file is loaded again; a name from another node is unknown yet."""
    if name is None:
        return "linked"
    try:
        path = Path(find(name, folder))
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        states = [file.stat() for file in files]
    except OSError:
        return "missing"
    return "-".join(f"{state.st_mtime_ns}-{state.st_size}" for state in states)
