"""
Photograph the page of the demo for README.md (`docs/images/page.png`), and time the knob in a browser.

    python benchmarks/page_picture.py [--adapter FOLDER]     # needs Chromium and the extras app and dev
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

from peft import PeftModel
from playwright.sync_api import sync_playwright

from peft_dso.app import build
from peft_dso.demo.model import load_smollm2
from peft_dso.demo.trained import ADAPTER


ROOT = Path(__file__).parents[1]
SHOWN = "t => document.querySelector('#dso-answers thead')?.innerText.includes(t)"


def milliseconds(page, number: int) -> list[float]:
    """From letting go of the slider until the bars show the new strength, for some strengths."""
    found = []
    for step in range(number):
        strength = 0.5 + 0.01 * (step + 1)
        begin = time.perf_counter()
        page.get_by_label("range slider for Strength of demo").press("ArrowRight")
        page.wait_for_function(SHOWN, arg=f"at {strength:g}")
        found.append(1000 * (time.perf_counter() - begin))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    model, tokenizer = load_smollm2()
    model = PeftModel.from_pretrained(model, options.adapter, adapter_name="demo")
    page = build(model, tokenizer, adapters={"demo": options.adapter}, model_name="smollm2")
    page.queue().launch(prevent_thread_lock=True, quiet=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, width in (("page", 1100), ("phone", 390)):
            context = browser.new_context(viewport={"width": width, "height": 820}, device_scale_factor=1.5)
            seen = context.new_page()
            seen.goto(page.local_url)
            seen.wait_for_selector("#dso-answers table")
            seen.get_by_label("number input for Strength of demo").fill("1")
            seen.get_by_label("number input for Strength of demo").blur()
            seen.wait_for_function(SHOWN, arg="at 1")
            seen.wait_for_timeout(400)
            seen.screenshot(path=options.out / f"{name}.png")
            context.close()
        knob = browser.new_page()
        knob.set_default_timeout(120_000)
        knob.goto(page.local_url)
        knob.wait_for_selector("#dso-answers table")
        knob.get_by_label("number input for Strength of demo").fill("0.5")
        knob.get_by_label("number input for Strength of demo").blur()
        knob.wait_for_function(SHOWN, arg="at 0.5")
        times = milliseconds(knob, 30)
        fastest, middle, slow = min(times), statistics.median(times), sorted(times)[len(times) * 9 // 10]
        print(f"the knob, ms: fastest {fastest:.0f}, median {middle:.0f}, 90 % below {slow:.0f}")
        browser.close()
    page.close()


if __name__ == "__main__":
    main()
