"""Pictures of the page of `halonet demo`, on a wide screen and on a phone.

Start `halonet demo RUN` beside it, and give its address:
python benchmarks/screenshots.py http://127.0.0.1:7860 PHOTO --output docs
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

SCREENS = {"demo": (1100, 1050), "demo_phone": (390, 844)}


def take(browser: Browser, address: str, photo: Path, size: tuple[int, int], output: Path) -> None:
    """The page with a photo, its classes, what spoke for the first, and a place's attention."""
    phone = size[0] < 500
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, is_mobile=phone, has_touch=phone
    )
    tab = context.new_page()
    tab.set_default_timeout(240_000)
    tab.goto(address)
    tab.locator("#picture input[type=file]").first.set_input_files(photo)
    tab.locator("#answer").get_by_text("%").first.wait_for()
    if not phone:
        tab.locator("#picture img").click()
        tab.locator("#attention img").wait_for()
        tab.get_by_role("button", name="what speaks for this class?").click()
        tab.locator("#relevance img").wait_for()
        tab.mouse.move(0, 0)
    tab.wait_for_timeout(1000)  # until what moves stands still
    shown = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    # 256 colours: a third of the size.
    shown.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        # Root has no sandbox.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, size in SCREENS.items():
            take(browser, options.address, options.photo, size, options.output / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
