"""Makes sure that the browser tests find a Chromium; where none can be had, says what is left out.

Always exits with 0: the other tests need no browser, and the browser tests skip themselves with a reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from playwright.sync_api import Error, sync_playwright

SYSTEM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_MS = 60_000


def starts(executable: str | None) -> bool:
    """Tells whether a browser starts; being on the PATH is no proof, since Ubuntu puts a stub for a snap there.

    Args:
        executable: Path of the browser, or None for the one that Playwright downloaded.
    """
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=executable, args=["--no-sandbox"], timeout=START_TIMEOUT_MS
            )
        except Error:
            return False
        browser.close()
        return True


def find_browser() -> str | None:
    """Returns what to call the first browser that starts, or None."""
    for name in SYSTEM_NAMES:
        path = shutil.which(name)
        if path and starts(path):
            return path
    return "Playwright's Chromium" if starts(None) else None


def install_commands() -> list[list[list[str]]]:
    """Returns the ways to install a browser on this machine, the preferred first, each a list of commands."""
    ways = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        ways.insert(0, [["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]])
    return ways


def main() -> None:
    """Finds a browser, or installs one, or says what is left out."""
    browser = find_browser()
    for commands in install_commands() if browser is None else []:
        print(f"No Chromium starts on this machine; installing one: {' && '.join(map(' '.join, commands))}", flush=True)
        if all(subprocess.call(command) == 0 for command in commands):
            browser = find_browser()
        if browser is not None:
            break
    if browser is None:
        print(
            "No Chromium starts on this machine and none could be installed: the tests marked `browser` (the dashboard "
            "in a real browser) are left out. Install Chromium or Google Chrome and run again to have them."
        )
    else:
        print(f"Browser tests use {browser}")


if __name__ == "__main__":
    main()
