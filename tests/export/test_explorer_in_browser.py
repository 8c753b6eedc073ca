"""The explorer in a real browser: what it draws is what NumPy computes."""

import base64
import json

import matplotlib
import numpy as np
import pytest
import scipy.special

import crate_jax.export.report
from crate_jax.export import explorer
from crate_jax.segmentation import attention, emergence, maskcut

pytestmark = pytest.mark.slow
GRID = 8
PATCHES = GRID * GRID


class Page:
    """The page in the browser, and the arrays that it was made of."""

    def __init__(self, browser, path, coordinates, shown):
        self.browser, self.path, self.w, self.examples = browser, path, coordinates, shown

    def open(self, width=1280):
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.browser.get(self.path.as_uri())
        return self

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def choose(self, group, value):
        script = (
            "document.querySelector(`[name=explorer-${arguments[0]}][value='${arguments[1]}']`)"
        )
        self.browser.execute_script(f"{script}.click()", group, value)

    def slide(self, name, value):
        self.browser.execute_script(
            "const slider = document.getElementById(`explorer-${arguments[0]}`);"
            "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
            name,
            value,
        )

    def point(self, row, column, stage="photo", click=False):
        from selenium.webdriver.common.action_chains import ActionChains

        element = self.find(f"#explorer-{stage}")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.rect["width"]
        offsets = (round(((at + 0.5) / GRID - 0.5) * size) for at in (column, row))
        chain = ActionChains(self.browser).move_to_element_with_offset(element, *offsets)
        (chain.click() if click else chain).perform()

    def press(self, *keys):
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            self.find("#explorer-photo").send_keys(getattr(Keys, key))

    def drawn(self):
        """(values, kept) once the frame is drawn, and the picture's colours as numbers."""
        values, kept, pixels = self.browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => {"
            "  const canvas = document.querySelector('#explorer-map canvas');"
            "  const picture = canvas.getContext('2d')"
            "    .getImageData(0, 0, canvas.width, canvas.height).data;"
            "  const {values, kept} = document.getElementById('explorer').drawn;"
            "  done([values, kept, Array.from(picture)]);"
            "}))"
        )
        return np.array(values), np.array(kept), np.array(pixels).reshape(-1, 4)[:, :3]

    def said(self):
        return self.find(".explorer-said").text


@pytest.fixture(scope="module")
def page(browser, captured, tmp_path_factory):
    shown, coordinates = captured
    path = crate_jax.export.report.write_report(
        tmp_path_factory.mktemp("explorer") / "index.html",
        title="An explorer",
        config={},
        history=[],
        examples=shown,
    )
    return Page(browser, path, coordinates, shown)


def expected_attention(w, token, head=None):
    """f64[n] of one layer's w f[tokens, heads, d]; the mean over heads where none is given."""
    products = np.einsum("hd,nhd->hn", w[token], w[1:], dtype=np.float64)
    maps = scipy.special.softmax(products / np.sqrt(w.shape[-1]), axis=-1)
    return maps.mean(0) if head is None else maps[head]


def stored(page, image):
    """w as the page holds it, decoded independently of the script."""
    text = page.find("#explorer-data").get_attribute("textContent")
    held = json.loads(text)["images"][image]
    codes = np.frombuffer(base64.b64decode(held["query"]), np.int8)
    scales = np.frombuffer(base64.b64decode(held["query_scale"]), "<f4")
    return codes.reshape(page.w[:, image].shape) * scales.reshape(4, -1, 1, 1)


def test_pointing_draws_the_map_that_numpy_computes(page):
    page.open()
    page.choose("image", 1)
    held = stored(page, 1)
    for layer, head, row, column in ((0, 0, 2, 3), (3, 2, 7, 0), (2, -1, 0, 7)):
        page.choose("head", f"{layer},{head}")
        page.point(row, column)
        values, kept, pixels = page.drawn()
        token, which = 1 + row * GRID + column, None if head < 0 else head
        exact = expected_attention(held[layer], token, which)
        np.testing.assert_allclose(values, exact, rtol=1e-5)
        full = expected_attention(page.w[layer, 1], token, which)
        np.testing.assert_allclose(values, full, atol=0.03 * full.max())
        np.testing.assert_array_equal(kept, attention.keep_mass(values.astype(np.float32)))
        shades = np.floor(255 * exact / exact.max() + 0.5).astype(int)
        colors = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]
        near = [colors[np.clip(shades + shift, 0, 255)] for shift in (-1, 0, 1)]
        assert (pixels == near).all(-1).any(0).all()


def test_similarity_is_the_cosine_that_the_graph_is_made_of(page):
    page.open()
    page.choose("view", "similarity")
    page.choose("head", "1,-1")
    page.point(4, 4, click=True)
    values, kept, _ = page.drawn()
    features = page.w[1, 0].reshape(1 + PATCHES, -1).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features[1:] @ features[1 + 4 * GRID + 4]
    np.testing.assert_allclose(values, cosines, atol=0.01)
    np.testing.assert_array_equal(kept, values > 0.15)
    assert f"{kept.sum()} of {PATCHES} patches" in page.said()
    page.slide("tau", 12)
    np.testing.assert_array_equal(page.drawn()[1], values > 0.6)


def test_the_cut_is_maskcuts_first_mask_at_every_tau(page):
    page.open()
    page.choose("image", 2)
    page.choose("view", "cut")
    for layer in (0, 3):
        page.choose("head", f"{layer},-1")
        features = page.w[layer, 2, 1:].reshape(PATCHES, -1)
        for index, tau in enumerate(explorer.TAUS):
            page.slide("tau", index)
            values, kept, _ = page.drawn()
            cut = maskcut.maskcut(features, (GRID, GRID), tau)
            np.testing.assert_array_equal(kept, cut.masks[0].ravel())
            vector = cut.eigenvectors[0] / max(np.abs(cut.eigenvectors[0]).max(), 1e-30)
            np.testing.assert_allclose(values, vector, atol=0.005)


@pytest.mark.parametrize("share", [0, 30, 95, 100])
def test_slider_of_the_kept_mass(page, share):
    page.open()
    page.slide("mass", share)
    values, kept, _ = page.drawn()
    np.testing.assert_array_equal(kept, attention.keep_mass(values.astype(np.float32), share / 100))
    said = page.said().replace("\N{NO-BREAK SPACE}", " ")
    assert f"{share} % of its attention lies on {kept.sum()} of {PATCHES} patches" in said
    objects = emergence.objects_of_mask(page.examples[0]["mask"], (GRID, GRID))
    inside = objects.counts[0][kept].sum()
    iou = inside / (objects.valid[kept].sum() + objects.counts[0][~kept].sum())
    assert f"IoU with the true object: {iou:.2f}" in said


def test_keyboard_moves_the_patch_and_returns_to_cls(page):
    page.open()
    first = page.drawn()[0]
    held = stored(page, 0)[3]
    np.testing.assert_allclose(first, expected_attention(held, 0), rtol=1e-5)
    page.press("ARROW_DOWN", "ARROW_LEFT", "ARROW_LEFT", "ARROW_UP")  # from the middle
    row, column = GRID // 2 - 1, GRID // 2 - 2
    token = 1 + row * GRID + column
    np.testing.assert_allclose(page.drawn()[0], expected_attention(held, token), rtol=1e-5)
    assert f"Patch at row {row + 1}, column {column + 1}" in page.said()
    page.press(*["ARROW_UP"] * GRID)
    assert "Patch at row 1," in page.said()
    page.press("HOME")
    np.testing.assert_array_equal(page.drawn()[0], first)
    assert page.find("#explorer-text").find_element("xpath", "..").get_attribute("aria-live")


def test_a_click_stays_and_hovering_does_not(page):
    page.open()
    page.point(6, 1)
    hovered = page.drawn()[0]
    page.point(1, 6, stage="map", click=True)
    clicked = page.drawn()[0]
    assert not np.array_equal(hovered, clicked)
    page.point(6, 1)
    np.testing.assert_array_equal(page.drawn()[0], hovered)
    leave = "document.getElementById('explorer-photo').dispatchEvent(new Event('pointerleave'))"
    page.browser.execute_script(leave)
    np.testing.assert_array_equal(page.drawn()[0], clicked)
    page.find("#explorer-cls").click()
    held = stored(page, 0)[3]
    np.testing.assert_allclose(page.drawn()[0], expected_attention(held, 0), rtol=1e-5)


def test_a_finger_on_a_phone(page):
    page.open(width=375)
    element = page.find("#explorer-photo")
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    box = page.browser.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.width]", element
    )
    x, y = box[0] + box[2] * 5.5 / GRID, box[1] + box[2] * 2.5 / GRID
    touch = {"x": x, "y": y}
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    for kind, points in (("touchStart", [touch]), ("touchEnd", [])):
        page.browser.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
        )
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    page.drawn()
    assert "Patch at row 3, column 6" in page.said()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_no_request_and_no_error(page):
    page.browser.get_log("browser")  # Chromium minds how often the tests above read the canvas
    page.open()
    for view in ("similarity", "cut", "attention"):
        page.choose("view", view)
        page.point(2, 2, click=True)
    requested = page.browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(address.startswith("data:") for address in requested)
    assert page.browser.get_log("browser") == []
