"""Take the pictures of docs/pages.md.

    python docs/take_screenshots.py agentopcd-work

from the workspace of a `agentopcd learn --env frozen-lake-4x4 --model pocket`. Needs Chromium, playwright and pillow.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from agentopcd.cli.page.report import report
from agentopcd.knowledge import Store

FIGURES = Path(__file__).resolve().parent / "figures"


def main(work: Path) -> None:
    """Write ``docs/figures/report-*.png``."""
    from playwright.sync_api import sync_playwright

    with Store.open(work / "store.db", create=False, to_read=True) as store, tempfile.TemporaryDirectory() as folder:
        run = store.runs("consolidate", "done")[-1]["id"]
        file = Path(folder) / "page.html"
        file.write_text(report(store, work, str(run)), encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            shots = (
                ("report-tokens", f"#tokens-{run}", 560),
                ("report-results", f"#run-{run}", 640),
            )
            for name, part, height in shots:
                view = browser.new_page(viewport={"width": 900, "height": height}, color_scheme="light")
                view.goto(file.as_uri())
                view.evaluate("(part) => document.querySelector(part).scrollIntoView()", part)
                if name == "report-tokens":
                    view.locator(f"{part} .t.b4").first.focus()
                _save(view.screenshot(), FIGURES / f"{name}.png")
            browser.close()


def _save(png: bytes, file: Path) -> None:
    """A picture of few colours: it is then a third of the size."""
    from PIL import Image

    Image.open(BytesIO(png)).convert("RGB").quantize(64).save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
