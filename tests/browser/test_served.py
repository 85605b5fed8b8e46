"""What the frontend fetches of the pack: templates with their pictures, help pages."""

import io
import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from weft.tools.console import Failure
from weft.tools.workflows import write_thumbnail
from weft.training.data.video_files import write_video

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


def test_a_thumbnail_is_a_frame_of_a_video(tmp_path):
    frames = np.zeros((6, 48, 64, 3), np.uint8)
    frames[4] = (200, 40, 40)
    video, picture = tmp_path / "video.mp4", tmp_path / "picture.jpg"
    write_video(video, frames, 8)
    for frame, red in ((4, 200), (None, 0)):  # the middle one is 3
        write_thumbnail(video, frame, picture)
        with Image.open(picture) as saved:
            assert saved.size == (512, 384) and abs(saved.getpixel((256, 192))[0] - red) <= 6
    with pytest.raises(Failure, match="has frames 0 to 5"):
        write_thumbnail(video, 6, picture)
