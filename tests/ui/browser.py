"""A headless Chromium that is driven over the WebDriver protocol, as far as the tests need one.

Owns the two programs and their end, finding things on a page by what a user reads, waiting for them, and the picture
that is taken when they never come. Knows nothing of Prefect's pages: that is `tests/ui/pages.py`. The one module that
touches Selenium.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ChromeOptions
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.common.proxy import Proxy
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.command import Command
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from tests.support.server import scrubbed_environment
from tests.support.services import Service, spawn
from tests.support.wait import wait_for

Found = TypeVar("Found")

ROLE_BROWSER = "browser"
MISSING = "this needs {} on the PATH; on Debian and Ubuntu: apt-get install chromium chromium-driver"
START_TIMEOUT = 120.0
# How long a page may take to show what a test waits for, the flow run behind it included, in seconds.
PAGE_TIMEOUT = 200.0
WIDTH, HEIGHT = 1280, 800
# What the page has asked the server for, with the answers' statuses; the browser keeps the first 250.
ANSWERS = (
    "return performance.getEntriesByType('resource')"
    ".filter(entry => entry.name.includes(arguments[0])).map(entry => entry.responseStatus)"
)
FORGET_ANSWERS = "performance.clearResourceTimings()"
PLACE = "const place = arguments[0].getBoundingClientRect(); return [place.x, place.y]"
FLAGS = (
    "--headless=new",
    # Its sandbox refuses to work for root, and the only pages it sees are those of the test's own server.
    "--no-sandbox",
    # In a container /dev/shm may be too small for it.
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--no-proxy-server",
    "--no-first-run",
    "--lang=en-US",
)


class BrowserMissingError(Exception):
    """There is no Chromium or no chromedriver here; the message says how to get them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """One window on one server. What is asked for is waited for; what never comes leaves a picture in `evidence`."""

    base_url: str
    driver: WebDriver
    evidence: Path

    def open(self, path: str) -> None:
        """Go to a page, by its path and query."""
        self.driver.get(f"{self.base_url}{path}")

    def wait(self, look: Callable[[], Found | None], *, what: str, timeout: float = PAGE_TIMEOUT) -> Found:
        """Wait until `look` has an answer. A page that is changed under its eyes is looked at again."""

        def looked() -> Found | None:
            try:
                return look()
            except WebDriverException:
                # Replaced, moved or covered meanwhile. A browser that is gone fails the report below.
                return None

        return wait_for(looked, timeout=timeout, interval=0.1, description=lambda: self._report(what))

    def find(self, xpath: str, *, what: str) -> WebElement:
        """Wait until something that fits is on the page and visible; the first one."""

        def look() -> WebElement | None:
            found = self.driver.find_elements(By.XPATH, xpath)
            return next((element for element in found if element.is_displayed()), None)

        return self.wait(look, what=what)

    def click(self, xpath: str, *, what: str) -> None:
        """Wait until something that fits can be clicked, and click it, once."""

        places: list[object] = []

        def clicked() -> bool:
            found = self.driver.find_elements(By.XPATH, xpath)
            ready = [element for element in found if element.is_displayed() and element.is_enabled()]
            if not ready:
                return False
            self._show(ready[0])
            places.append(_script(self.driver, PLACE, ready[0]))
            if len(places) < 2 or places[-1] != places[-2]:
                return False  # A click would miss what moves.
            ready[0].click()
            return True

        self.wait(clicked, what=what)

    def press(self, text: str) -> None:
        """Click the button, tab, link or menu entry that says `text`."""
        self.click(pressable(text), what=f"something to press that says {text!r}")

    def asks(self, request: str, *, by: Callable[[], None]) -> int:
        """Do something that makes the page send a request whose address has `request` in it; the answer's status."""
        _script(self.driver, FORGET_ANSWERS)
        by()

        def answered() -> int | None:
            statuses: list[int] = _script(self.driver, ANSWERS, request)
            return next(filter(None, statuses), None)

        return self.wait(answered, what=f"an answer to {request}")

    def replace(self, xpath: str, text: str, *, what: str) -> None:
        """Type `text` over all that is in a field or an editor, and wait until it is all that is there."""
        self.click(xpath, what=what)

        def typed() -> bool:
            field = self.driver.find_element(By.XPATH, xpath)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(Keys.DELETE)
            field.send_keys(text)
            return text in {field.text, field.get_attribute("value")}

        self.wait(typed, what=f"{text!r} in {what}")

    def text(self) -> str:
        """All that can be read on the page now."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait_text(self, *texts: str) -> str:
        """Wait until all of these can be read on the page; the whole text of it."""

        def read() -> str | None:
            seen = self.text()
            return seen if all(text in seen for text in texts) else None

        return self.wait(read, what=f"the words {texts} on the page")

    def show(self, xpath: str, *, what: str) -> None:
        """Scroll until what fits is in the middle of the window."""
        self._show(self.find(xpath, what=what))

    def picture(self, target: Path) -> None:
        """What the window shows, as a PNG."""
        target.write_bytes(self.driver.get_screenshot_as_png())

    def _show(self, element: WebElement) -> None:
        _script(self.driver, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)

    def _report(self, what: str) -> str:
        self.evidence.mkdir(parents=True, exist_ok=True)
        picture, page = self.evidence / "page.png", self.evidence / "page.html"
        self.picture(picture)
        page.write_text(self.driver.page_source)
        return f"{what}, at {self.driver.current_url}; see {picture} and {page}; it says:\n{self.text()}"


def quoted(text: str) -> str:
    """`text` as a string of an XPath expression, which knows no escapes."""
    if "'" not in text:
        return f"'{text}'"
    parts = ', "\'", '.join(f"'{part}'" for part in text.split("'"))
    return f"concat({parts})"


def pressable(text: str) -> str:
    """The XPath of what a user presses by its words."""
    kinds = "self::button or self::a or @role='button' or @role='tab' or @role='menuitem'"
    return f"//*[{kinds}][normalize-space()={quoted(text)}]"


@contextmanager
def browser(base_url: str, *, evidence: Path, mark: str) -> Generator[Browser]:
    """A browser with a profile of its own; at the end every process of it and the profile are gone.

    Raises `BrowserMissingError`.
    """
    chromium, chromedriver = program("chromium"), program("chromedriver")
    # Sockets are made in here: pytest's own directories have names too long for them.
    with tempfile.TemporaryDirectory(prefix="headrace-ui-") as name:
        directory = Path(name)
        service = spawn(
            [chromedriver, "--port=0"],
            name="chromedriver",
            role=ROLE_BROWSER,
            directory=directory,
            environment=scrubbed_environment(home=directory, mark=mark),
        )
        try:
            driver = _driver(service, chromium, directory / "profile")
            try:
                _resize(driver)
                yield Browser(base_url=base_url, driver=driver, evidence=evidence)
            finally:
                driver.quit()
        finally:
            service.end()


def program(name: str) -> str:
    """The path of a program; raises `BrowserMissingError` when there is none."""
    found = shutil.which(name)
    if found is None:
        raise BrowserMissingError(MISSING.format(name))
    return found


def _driver(service: Service, chromium: str, profile: Path) -> WebDriver:
    alive = service.wait_until_true(lambda: _port(service) is not None, timeout=START_TIMEOUT)
    if not alive:
        raise AssertionError(f"chromedriver did not start\n{service.transcript()}")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(flag)
    config = ClientConfig(
        f"http://127.0.0.1:{_port(service)}",
        proxy=Proxy({"proxyType": "direct"}),
        timeout=round(PAGE_TIMEOUT),
    )
    return WebDriver(RemoteConnection(client_config=config), options=options)


def _port(service: Service) -> int | None:
    match = re.search(r"started successfully on port (\d+)", service.stdout())
    return int(match[1]) if match else None


def _resize(driver: WebDriver) -> None:
    """Make the page, not the window around it, as large as it should be."""
    inner = _script(driver, "return window.innerHeight")
    driver.execute(Command.SET_WINDOW_RECT, {"width": WIDTH, "height": HEIGHT + HEIGHT - inner})


def _script(driver: WebDriver, script: str, *arguments: object) -> Any:
    # Selenium's own method for it has no types.
    return driver.execute(Command.W3C_EXECUTE_SCRIPT, {"script": script, "args": list(arguments)})["value"]
