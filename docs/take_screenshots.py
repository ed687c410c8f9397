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
from typing import Any

from agentopcd.cli.page.report import paper_report, report
from agentopcd.knowledge import Store

FIGURES = Path(__file__).resolve().parent / "figures"


def main(work: Path) -> None:
    """Write ``docs/figures/report-*.png``."""
    from playwright.sync_api import sync_playwright

    with Store.open(work / "store.db", create=False, to_read=True) as store, tempfile.TemporaryDirectory() as folder:
        run = store.runs("consolidate", "done")[-1]["id"]
        pages = {"whole": report(store, work), "paper": paper_report(FIGURES.parent / "results")}
        for name, text in pages.items():
            (Path(folder) / f"{name}.html").write_text(text, encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            shots: tuple[Any, ...] = (
                ("report-tokens", "whole", f"#tokens-{run}", "light", 900, 560),
                ("report-results", "whole", f"#run-{run}", "light", 900, 640),
                ("report-beside", "whole", "section[id^=beside]", "dark", 900, 640),
                ("report-forest", "paper", "#paper", "light", 900, 560),
            )
            for name, page, part, scheme, width, height in shots:
                view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                view.goto((Path(folder) / f"{page}.html").as_uri())
                view.locator(part).scroll_into_view_if_needed()
                view.evaluate("(part) => document.querySelector(part).scrollIntoView()", part)
                if name == "report-beside":
                    view.evaluate("document.querySelector('.task').open = true")
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
