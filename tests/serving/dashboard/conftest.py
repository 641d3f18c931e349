"""Pages in a browser: none may log an error or ask another host."""

import pytest
from playwright.sync_api import sync_playwright

from tests.serving.dashboard.chromium import FLAGS, PROGRAM

# Of tests that stop the daemon, send a wrong token, ask for a server that is not there, or for the audit of an hour.
EXPECTED_PROBLEMS = ("401", "404", "409", "Authorization: Bearer", "net::ERR_", "Failed to fetch")


@pytest.fixture(scope="module")  # while it is open, the thread has a running event loop, and asyncio.run has to fail
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        yield launched
        launched.close()


class Watched:
    """A page whose console errors, failures and requests are recorded."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.problems, self.hosts = [], set()
        self.page.on(
            "console",
            lambda message: self.problems.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def unexpected(self):
        return [text for text in self.problems if not any(part in text for part in EXPECTED_PROBLEMS)]


@pytest.fixture
def open_page(browser):
    opened = []

    def opener(address, **options):
        watched = Watched(browser, **options)
        opened.append((watched, address))
        watched.page.goto(address)
        return watched.page

    yield opener
    for watched, address in opened:
        watched.context.close()
        assert watched.unexpected() == []
        assert watched.hosts == {address.split("/")[2]}
