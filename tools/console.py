"""How dev.py talks: plain lines for people, one line for a failure."""

import shutil
import sys
import time


class Failure(Exception):
    """What went wrong and what to do about it, in one line; `detail` is the end of a log."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.detail = detail


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


class ProgressBar:
    """Draws one line in place on a terminal, and a few plain lines into a file or a pipe."""

    width = 24

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.title = ""
        self.started = 0.0

    def begin(self, title: str) -> None:
        """Start the line of the next node."""
        self.end()
        self.title, self.started = title, time.monotonic()
        self._draw(title) if self.live else say(f"  {title}")

    def update(self, value: float, total: float) -> None:
        """Show `value` of `total` steps of the current node."""
        if not self.title or total <= 0:
            return
        filled = int(self.width * min(value / total, 1.0))
        steps = f"{value:g}/{total:g}, {time.monotonic() - self.started:.1f} s"
        if self.live:
            self._draw(f"[{'#' * filled}{'.' * (self.width - filled)}] {self.title} {steps}")
        elif value >= total:
            say(f"  {self.title} {steps}")

    def end(self) -> None:
        """Leave the current line."""
        if self.title and self.live:
            print(flush=True)
        self.title = ""

    def _draw(self, text: str) -> None:
        print("\r\033[K" + f"  {text}"[: shutil.get_terminal_size().columns - 1], end="", flush=True)
