"""The pages in a real browser: no complaint, no request, nothing too wide or too pale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reports.browser import Browser, find_browser
from reports.samples import hostile, labelled, unlabelled
from reports.test_page import several
from zoopress.reports.comparison import compare
from zoopress.reports.leaderboard import CellOutcome, Leaderboard
from zoopress.reports.leaderboard_page import leaderboard_page
from zoopress.reports.page import report_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_browser() is None,
        reason="needs a Chromium on PATH, such as Debian's chromium-headless-shell",
    ),
]

LEAST_CONTRAST = 4.5
"""Of text to what is behind it. Source: WCAG 2.2, success criterion 1.4.3."""

TOO_PALE = """
(() => {
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *:not(svg *)")]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .filter(e => e.checkVisibility())
    .map(e => {
      const [a, b] = [numbers(getComputedStyle(e).color), behind(e)].map(luminance);
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)];
    })
    .filter(([contrast]) => contrast < LEAST)
    .map(([contrast, text]) => `${contrast.toFixed(2)}: ${text}`);
})()
""".replace("LEAST", str(LEAST_CONTRAST))

FIRST_MARK = """
(async () => {
  const mark = document.querySelector("figure .role-mark [aria-label]");
  mark.scrollIntoView({block: "center"});
  // What scrolls hides the label, two frames later at most.
  for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  const box = mark.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2, mark.getAttribute("aria-label")];
})()
"""

ALL_LABELS = """
[...document.querySelectorAll("figure .role-mark [aria-label]")].map(mark => mark.ariaLabel)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    with Browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = several()
    board = Leaderboard(
        [
            *(
                CellOutcome("lenet", r, "done", folder=f"out/{r}", report=labelled(r))
                for r in "abc"
            ),
            CellOutcome("lenet", "harsh", "failed", "Stage 1 failed.\nDeep inside " + "x" * 200),
        ]
    )
    contents = {
        "labelled": report_page([labelled()]),
        "unlabelled": report_page([unlabelled()]),
        "hostile": report_page([hostile()]),
        "several": report_page([f.report for f in found if f.report], compare(found)),
        "compare": report_page([], compare(found)),
        "leaderboard": leaderboard_page(board, folder),
    }
    for name, content in contents.items():
        (folder / f"{name}.html").write_text(content, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in contents}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize(
    "name", ["labelled", "unlabelled", "hostile", "several", "compare", "leaderboard"]
)
def test_the_page_is_whole_quiet_and_readable(
    name: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name], width, dark)
    browser.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.complaints == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(TOO_PALE) == []
    ink = browser.evaluate("getComputedStyle(document.body).color")
    text = browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert text == ink  # charts are drawn in the page's own colour


def test_a_mark_shows_its_label_where_it_is_pointed_at(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for name in ("labelled", "leaderboard"):
        browser.open(pages[name], 1280)
        x, y, label = browser.evaluate(FIRST_MARK)
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        shown = browser.evaluate("tip.hidden ? '' : tip.textContent")
        labels = browser.evaluate(ALL_LABELS)
        assert label in labels
        assert shown in labels  # of this mark, or of one that lies on it


def test_pictures_of_inputs_are_really_shown(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["labelled"], 360)
    browser.evaluate("document.querySelector('.examples').scrollIntoView()")
    assert browser.evaluate("[...document.images].map(image => image.naturalWidth)") == [8, 8]


def test_the_leaderboard_sorts_and_filters(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["leaderboard"], 1280)
    browser.evaluate("document.querySelector('#cells thead th.name button').click()")
    order = "[...document.querySelectorAll('#cells tbody tr')].map(r => r.dataset.recipe).join('')"
    first = browser.evaluate(order)
    browser.evaluate("document.querySelector('#cells thead th.name button').click()")
    assert browser.evaluate(order) == first[::-1]
    browser.evaluate("recipe.value = 'b'; recipe.dispatchEvent(new Event('change'))")
    shown = "[...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden).length"
    assert browser.evaluate(shown) == 1
