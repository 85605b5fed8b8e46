"""The git revision of this source tree, read from its files."""

from __future__ import annotations

from pathlib import Path


def git_revision(root: Path = Path(__file__).parents[1]) -> str:
    """The commit that HEAD names, "unknown" outside a git checkout."""
    folder = root / ".git"
    if folder.is_file():
        folder = root / folder.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
    head_file = folder / "HEAD"
    if not head_file.is_file():
        return "unknown"
    head = head_file.read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    reference = head.removeprefix("ref: ")
    shared = folder / "commondir"
    if shared.is_file():  # a further working tree of a repository, whose branches are kept there
        folder = folder / shared.read_text(encoding="utf-8").strip()
    loose = folder / reference
    if loose.is_file():
        return loose.read_text(encoding="utf-8").strip()
    packed = folder / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), "unknown")
