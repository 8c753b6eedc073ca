"""The pages in a real browser, without a head."""

import numpy as np
import pytest

from crate_jax.export import overlays, report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages")
    items = [
        {
            "name": f"a-rather-long-file-name-of-a-photograph-{index}.jpg",
            "panels": [("image", e["image"]), ("masks", np.roll(e["image"], 1, -1))],
            "confidences": [0.8, 0.3],
        }
        for index, e in enumerate(run["examples"])
    ]
    explored = [
        {"name": e["label"], "picture": e["image"], "packed": e["packed"]}
        for e in run["examples"]
        if "packed" in e
    ]
    return {
        "report": report.write_report(directory / "report.html", **run),
        "gallery": report.write_gallery(
            directory / "gallery.html",
            title="Photographs",
            items=items,
            settings={},
            explored=explored,
        ),
    }


def emulate(browser, width=1280, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def visible(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility())"
    return sum(browser.execute_script(script, selector))


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_pictures_are_drawn_without_an_error_or_a_request(browser, pages, name):
    emulate(browser)
    browser.get(pages[name].as_uri())
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert browser.execute_script("return document.images.length") > 20
    assert broken == 0
    requested = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(address.startswith("data:") for address in requested)
    assert browser.get_log("browser") == []


def test_linked_pictures_of_a_gallery_are_drawn(browser, tmp_path):
    (tmp_path / "overlays").mkdir()
    picture = np.zeros((30, 40, 3), np.uint8)
    (tmp_path / "overlays" / "a b.png").write_bytes(overlays.encode(picture))
    items = [{"name": "a", "panels": [("masks", "overlays/a%20b.png")]}]
    path = report.write_gallery(tmp_path / "i.html", title="t", items=items, settings={})
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(path.as_uri())
    # Linked pictures load lazily, so perhaps after the page.
    drawn = "const i = document.images[0]; return i.complete && i.naturalWidth"
    assert WebDriverWait(browser, 20).until(lambda b: b.execute_script(drawn)) == 40
    assert browser.get_log("browser") == []


def test_layer_and_view_can_be_chosen_without_a_script(browser, pages):
    emulate(browser)
    browser.get(pages["report"].as_uri())
    assert visible(browser, ".of-layer") == 12
    assert visible(browser, ".layer-5 .map") == 12 * 6
    label = browser.find_element("css selector", "label:has(#layer-2)")
    label.click()
    assert visible(browser, ".of-layer") == visible(browser, ".layer-2") == 12
    assert visible(browser, ".head .mass") == 0
    for view in ("mass", "area"):
        browser.find_element("css selector", f"label:has(#view-{view})").click()
        assert visible(browser, f".layer-2 .{view}") == visible(browser, f".head .{view}") == 72
        assert visible(browser, ".head .map") == 0
        assert visible(browser, f".by-{view}") == 72


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_nothing_runs_over_the_side_of_a_phone(browser, pages, name):
    emulate(browser, width=375)
    browser.get(pages[name].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_dark_is_dark(browser, pages):
    colors = {}
    for scheme in ("light", "dark"):
        emulate(browser, scheme=scheme)
        browser.get(pages["report"].as_uri())
        colors[scheme] = browser.execute_script(
            "const style = getComputedStyle(document.body);"
            "const tick = getComputedStyle(document.querySelector('svg text'));"
            "return [style.backgroundColor, style.color, tick.fill]"
        )
    assert colors["light"][0] == "rgb(250, 249, 246)"
    assert colors["dark"][0] == "rgb(20, 18, 25)"
    for place in (1, 2):
        assert colors["light"][place] != colors["dark"][place]
