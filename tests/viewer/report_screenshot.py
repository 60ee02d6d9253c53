"""The picture of a report that the README shows.

    python -m tests.viewer.report_screenshot demo-output/report.html docs/report.png

opens the report of the demo in a headless browser, and writes what is on the screen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.viewer.browser import open_browser
from tests.viewer.programs import install_browser
from tests.viewer.report_page import open_report

WIDTH_PX, HEIGHT_PX = 1240, 1310


def main(arguments: list[str]) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args(arguments)
    with (
        open_browser(install_browser(), offline=True) as context,
        open_report(context, chosen.report.resolve()) as opened,
    ):
        opened.page.set_viewport_size({"width": WIDTH_PX, "height": HEIGHT_PX})
        chosen.picture.write_bytes(opened.page.screenshot())


if __name__ == "__main__":
    main(sys.argv[1:])
