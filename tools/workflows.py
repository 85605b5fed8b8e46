"""Turns an API graph into the workflow that artists open, by ComfyUI's own frontend in a headless browser.

Unlike the rest of this folder it needs packages: playwright, and PyAV with Pillow for the thumbnail.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
from playwright.sync_api import Page, sync_playwright

from .comfyui import NEWEST, ComfyUI
from .console import Failure, say
from .downloads import beside
from .server import Server, running

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
THUMBNAIL_WIDTH = 512
# No sandbox: containers run as root. Only this machine is reachable: the page would ask the network for news.
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else a fresh user first sees the template browser
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
}
READY = "window.app && window.app.vueAppReady && window.app.isGraphReady"
SETTLE_MS = 1500  # after READY the page still opens its first, empty tab

# Runs in the page. A node of an API graph has no place, so the frontend arranges them; notes stand in a column before.
# Groups are rows, one below the other: a node stands behind what it reads, a loader just before what reads it.
BUILD = """async ({api, name, notes, models, groups, seeds}) => {
  await app.loadApiJson(api, name)
  for (const node of app.graph.nodes) {
    node.size[0] = Math.max(node.size[0], 80 + 8 * node.title.length)
    // The picture comes later.
    if (['LoadImage', 'PreviewImage'].includes(node.type)) node.size[1] = Math.max(node.size[1], 380)
    for (const widget of node.widgets ?? [])
      if (widget.name === 'control_after_generate') widget.value = seeds ?? widget.value
  }
  const row = (members, top) => {
    const all = node => (node.inputs ?? []).map((_, slot) => node.getInputNode(slot))
    const read = node => all(node).filter(other => members.includes(other))
    const depth = node => Math.max(-1, ...read(node).map(depth)) + 1
    const column = node => read(node).length ? depth(node)
      : Math.max(1, Math.min(...members.filter(other => read(other).includes(node)).map(depth))) - 1
    let left = 0
    for (let at = 0; at <= Math.max(...members.map(depth)); at++) {
      const stack = members.filter(node => (isFinite(column(node)) ? column(node) : 0) === at)
      const isRead = node => members.some(other => read(other).includes(node))
      const rank = node => !read(node).length ? 1 : isRead(node) ? 0 : 2
      stack.sort((one, other) => rank(one) - rank(other))
      let y = top
      for (const node of stack) {
        node.pos = [left, y]
        y += node.size[1] + 70
      }
      left += Math.max(0, ...stack.map(node => node.size[0])) + 80
    }
    const bottom = Math.max(...members.map(node => node.pos[1] + node.size[1]))
    return {width: left - 80, height: bottom - top}
  }
  app.graph.arrange(60)
  let below = 0
  for (const {title, nodes} of groups) {
    const members = nodes.map(id => app.graph.getNodeById(id)), group = new LiteGraph.LGraphGroup(title)
    const {width, height} = row(members, below)
    group.pos = [-30, below - 90]
    group.size = [width + 60, height + 120]
    app.graph.add(group)
    below += height + 170
  }
  const left = Math.min(...app.graph.nodes.map(node => node.pos[0]))
  let top = Math.min(...app.graph.nodes.map(node => node.pos[1]))
  for (const {title, text} of notes) {
    const lines = text.trim().split(/\\n\\s*\\n/).reduce((sum, part) => sum + 1 + Math.ceil(part.length / 78), 0)
    const note = LiteGraph.createNode('MarkdownNote')
    note.title = title
    note.widgets[0].value = text
    note.size = [440, 60 + 16 * lines]
    note.pos = [left - 520, top]
    top += note.size[1] + 60
    app.graph.add(note)
  }
  for (const [id, files] of Object.entries(models)) app.graph.getNodeById(Number(id)).properties.models = files
  return JSON.stringify(app.rootGraph.serialize())
}"""


@contextlib.contextmanager
def canvas(server: Server, chromium: str) -> Iterator[tuple[Page, list[str]]]:
    """Open the frontend of a server with a fresh profile; gives the page, and the errors that its scripts raise."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        try:
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.request.post(server.url + "/api/settings", data=SETTINGS)
            page.goto(server.url)
            page.wait_for_function(READY, timeout=120_000)
            page.wait_for_timeout(SETTLE_MS)
            yield page, errors
        finally:
            browser.close()


def build(page: Page, name: str, api: dict[str, dict], additions: dict) -> dict:
    """Return the UI workflow of an API graph with the additions that `downloads.beside` gives."""
    given = {"notes": [], "models": {}, "groups": [], "seeds": None} | additions
    workflow = json.loads(page.evaluate(BUILD, {"api": api, "name": name, **given}))
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    workflow["extra"].pop("ds", None)  # without a saved view, the frontend shows the whole graph
    return workflow


def write_thumbnail(video: Path, frame: int | None, path: Path) -> None:
    """Save one frame of a video (None: the middle one) as a .jpg, enlarged to the template browser's size."""
    with av.open(str(video)) as container:
        frames = [decoded.to_image() for decoded in container.decode(video=0)]
    frame = len(frames) // 2 if frame is None else frame
    if frame not in range(len(frames)):
        raise Failure(f"--frame {frame}: {video} has frames 0 to {len(frames) - 1}")
    width, height = frames[frame].size
    frames[frame].resize((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH * height // width)).save(path, quality=90)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command."""
    parser = argparse.ArgumentParser(
        prog="python -m weft.tools.workflows",
        description="Make workflows/NAME.json for the canvas out of workflows/api/NAME.json, by ComfyUI's frontend.",
        epilog="What the canvas shows beside the graph is in workflows/api/NAME.toml, if there is one: [[notes]] with "
        "title and text (Markdown), [[models.ID]] with name, url and directory for the node with that id, [[groups]] "
        "with title and nodes (ids), which become rows, and seeds: what becomes of them after a run, such as 'fixed' "
        "(the page's own choice is 'randomize'). "
        "Needs Chromium, the model files that the graph names, and the packages that `dev.py test` installs.",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--video", type=Path, metavar="FILE", help="also make workflows/NAME.jpg of a frame of this")
    parser.add_argument("--frame", type=int, metavar="N", help="the frame, from 0 (default: the middle one)")
    parser.add_argument("--comfyui", type=Path, help="folder of ComfyUI (default: what dev.py has downloaded)")
    parser.add_argument("--chromium", help="the browser (default: WEFT_CHROMIUM, or the first one on the path)")
    return parser


def main() -> int:
    """Write the workflow and, if a video is given, its thumbnail."""
    options = make_parser().parse_args()
    chromium = options.chromium or os.environ.get("WEFT_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise Failure("no Chromium found: name it by --chromium")
    folder = options.comfyui or ROOT / ".venv" / "comfyui" / NEWEST.version
    source = WORKFLOWS / "api" / f"{options.name}.json"
    if not source.is_file():
        raise Failure(f"there is no {source}")
    api = json.loads(source.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as base:
        comfyui = ComfyUI(folder.resolve(), Path(sys.executable))
        with running(comfyui, Path(base), ROOT, log=Path(base, "log")) as server, canvas(server, chromium) as (page, _):
            workflow = build(page, options.name, api, beside(source))
    written = WORKFLOWS / source.name
    written.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")
    say(str(written))
    if options.video is not None:
        write_thumbnail(options.video, options.frame, written.with_suffix(".jpg"))
        say(str(written.with_suffix(".jpg")))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"error: {failure}")
