"""Draw the README's pictures of the page: the shipped models before drawn phantoms, photographed in Debian's chromium.

Run ``make pictures``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pydicom
from PIL import Image, ImageFilter
from playwright.sync_api import Page, sync_playwright

from models.example import chest_phantom, draw_chest, tissue_phantom

HERE = Path(__file__).parent
LARGEST = 200_000
"""Bytes of a picture."""


def unmarked_chest() -> bytes:
    """Return the drawn chest without the element that says it is a phantom, which would end every verdict."""
    data = pydicom.dcmread(BytesIO(chest_phantom()))
    del data.QualityControlSubject
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def variants() -> list[bytes]:
    """Return chests that differ, as scanners and patients do: PNG."""
    chest = Image.fromarray((draw_chest() >> 4).astype(np.uint8))
    changed = [
        chest,
        chest.filter(ImageFilter.GaussianBlur(9)),
        chest.rotate(14),
        chest.point(lambda value: 255 - value),
        chest.crop((250, 150, 800, 700)).resize(chest.size),
        chest.point(lambda value: min(255, value * 2)),
        chest.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        chest.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-4),
    ]
    drawn = []
    for picture in changed:
        stream = BytesIO()
        picture.save(stream, "PNG")
        drawn.append(stream.getvalue())
    return drawn


def serve(state: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an open service on this machine, and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "OVERREAD_STATE": str(state),
        "OVERREAD_SITES": "north,south",
        "OVERREAD_REVIEW_LOSS_PERCENTILE": "40",
        "OVERREAD_KEEP_RANDOM_SHARE": "1",
    }
    command = [sys.executable, "-m", "models.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        time.sleep(0.2)
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
    raise SystemExit("the service did not start")


def keep(page: Page, name: str) -> None:
    """Write what is shown, in 256 colours and as large as fits."""
    page.wait_for_timeout(800)
    with Image.open(BytesIO(page.screenshot())) as seen:
        picture = seen.convert("RGB")
    for percent in range(100, 40, -4):
        size = picture.width * percent // 100, picture.height * percent // 100
        smaller = picture.resize(size, Image.Resampling.LANCZOS)
        stream = BytesIO()
        # The method that keeps the rare colours too: the verdict's, the marks'
        drawn = smaller.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        drawn.save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= LARGEST:
            break
    (HERE / name).write_bytes(stream.getvalue())
    print(f"{name}: {len(stream.getvalue()) // 1000} kB, {size[0]} x {size[1]} pixels")


def photograph(page: Page, url: str, folder: Path) -> None:
    """Walk through the page and keep three views."""
    scan = folder / "chest.dcm"
    scan.write_bytes(unmarked_chest())
    for number, body in enumerate(variants()):
        site = ("north", "south")[number % 2]
        httpx.post(f"{url}/v1/predict", params={"site": site}, content=body, headers={"content-type": "image/png"}, timeout=60)
    query = {"model": "nuclei", "site": "north"}
    httpx.post(f"{url}/v1/predict", params=query, content=tissue_phantom(), headers={"content-type": "image/png"}, timeout=60)
    page.goto(f"{url}/ui")
    page.locator("#file").set_input_files(str(scan))
    page.locator(".verdict").wait_for()
    keep(page, "scan.png")
    page.goto(f"{url}/ui#worklist")
    page.locator(".list").wait_for()
    keep(page, "worklist.png")
    page.emulate_media(color_scheme="light")
    page.get_by_label("Model", exact=True).select_option("nuclei")
    page.get_by_role("button", name="Read number 1").click()
    page.locator(".reading:not([aria-busy])").wait_for()
    page.keyboard.press("r")
    page.mouse.click(120, 345)
    page.mouse.click(380, 600)
    page.keyboard.press("p")
    for x, y in [
        (148, 341),
        (175, 368),
        (206, 385),
        (152, 430),
        (189, 454),
        (245, 450),
        (182, 489),
        (205, 574),
        (280, 514),
        (308, 538),
    ]:
        page.mouse.click(x, y)
        page.wait_for_timeout(320)
    keep(page, "marking.png")


def main() -> None:
    """Draw the three pictures into this folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, url = serve(folder / "state")
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark")
                photograph(page, url, folder)
                browser.close()
        finally:
            process.terminate()
            process.wait(40)


if __name__ == "__main__":
    main()
