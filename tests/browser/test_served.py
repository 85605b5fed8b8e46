"""What the frontend fetches of the pack: templates with their pictures, help pages."""

import io
import json
from pathlib import Path
from urllib.parse import quote

from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def test_templates_are_listed_and_served_with_a_picture(server):
    listed = json.loads(server.get("/api/workflow_templates"))["ComfyUI-Weft"]
    assert sorted(listed) == sorted(path.stem for path in WORKFLOWS.glob("*.json")) and listed
    for name in listed:
        address = f"/api/workflow_templates/ComfyUI-Weft/{quote(name)}"
        assert json.loads(server.get(address + ".json"))["nodes"]
        with Image.open(io.BytesIO(server.get(address + ".jpg"))) as picture:
            assert picture.format == "JPEG" and picture.width >= 256


def test_help_pages_are_where_the_frontend_looks(server):
    nodes = [name for name in json.loads(server.get("/object_info")) if name.startswith("Weft")]
    for name in nodes:
        page = server.get(f"/extensions/ComfyUI-Weft/docs/{name}.md").decode()
        assert len(page.split()) > 80, name
