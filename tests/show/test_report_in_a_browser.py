"""The report page in a real, headless Chromium: no network, search, sort, open a latent, pixels of the heat map.

Without a browser these tests fail, so that nobody takes silence for success; VISAE_NO_BROWSER=1 leaves them out.
"""

import os
import shutil
import time

import numpy as np
import pytest

from visae.show import build_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1500,1000",
)

pytestmark = pytest.mark.skipif(
    os.environ.get("VISAE_NO_BROWSER") == "1", reason="VISAE_NO_BROWSER=1 asks for no browser"
)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    binary, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.fail(
            f"no browser: looked for {', '.join(BROWSERS)} (found {binary}) and chromedriver (found {driver}). "
            "Install both (apt-get install chromium chromium-driver), or set VISAE_NO_BROWSER=1 to leave them out"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture(scope="module")
def report(report_inputs, tmp_path_factory):
    return build_report(report_inputs, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(browser, report):
    browser.get("about:blank")
    browser.get(report.as_uri())
    wait(browser, "return document.documentElement.dataset.ready === 'yes'")
    return browser


def wait(browser, script, *arguments, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if result := browser.execute_script(script, *arguments):
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for: {script}")


def one(browser, selector):
    return browser.find_element("css selector", selector)


def ids(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#rows tr')].map(r => Number(r.dataset.latent))"
    )


def search(browser, text):
    box = one(browser, "#search")
    box.clear()
    box.send_keys(text or " ")
    return ids(browser)


def painted(browser):
    wait(
        browser,
        "const c = [...document.querySelectorAll('#detail figure canvas')];"
        "return c.length && c.every(x => x.dataset.painted)",
    )
    pixels = browser.execute_script(
        "const c = document.querySelector('#detail figure canvas'), pixels = c.getContext('2d');"
        "return [c.height, c.width, [...pixels.getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(pixels[2], float).reshape(pixels[0], pixels[1], 4)[..., :3]


def test_the_page_opens_from_disk_without_errors_and_without_any_request(page):
    assert "tiny-clip" in page.title
    problems = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert problems == []
    requests = [e["message"] for e in page.get_log("performance") if 'Network.requestWillBeSent"' in e["message"]]
    assert all('"url":"file:///' in r or '"url":"data:' in r or '"url":"about:' in r for r in requests)


def test_all_alive_latents_are_listed_and_a_label_or_a_number_or_a_rule_finds_them(page, report_inputs):
    table = report_inputs.table
    assert sorted(ids(page)) == table.alive.tolist()
    assert "58 of 58 latents" in one(page, "#count").text
    assert search(page, "shape=circle")[0] == table.factors["shape"].index("circle")
    assert search(page, "12") == [12]
    rare = search(page, "density<0.02")
    assert 0 < len(rare) < 58
    assert sorted(rare) == [j for j in table.alive if table.density[j] < 0.02]
    sure = search(page, "f1>0.99 colour=")
    assert set(range(12, 20)) <= set(sure) < set(range(20))  # best of a colour, or second best behind a shape
    assert search(page, "nonsense") == []
    assert "0 of 58" in one(page, "#count").text


def test_a_click_on_a_column_sorts_by_it_and_a_second_one_turns_it_round(page, report_inputs):
    density = report_inputs.table.density
    one(page, "[data-sort=density]").click()
    down = ids(page)
    assert [f"{density[j]:.3g}" for j in down] == [
        f"{d:.3g}" for d in sorted(density[report_inputs.table.alive], reverse=True)
    ]
    assert one(page, "[data-sort=density]").find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    one(page, "[data-sort=density]").click()
    assert density[ids(page)[0]] == density[report_inputs.table.alive].min()
    one(page, "[data-sort=id]").click()
    assert ids(page) == report_inputs.table.alive.tolist()


def test_opening_a_latent_shows_its_top_images_histogram_and_best_labels(page, report_inputs):
    one(page, "#rows tr[data-latent='14']").click()
    detail = one(page, "#detail")
    assert "Latent 14 · colour=yellow" in detail.text
    assert page.current_url.endswith("#latent=14")
    top = report_inputs.table.top(14, 12)
    values = page.execute_script(
        "return [...document.querySelectorAll('#detail figcaption b')].map(b => Number(b.textContent))"
    )
    np.testing.assert_allclose(values, top.values, rtol=6e-3)
    keys = page.execute_script(
        "return [...document.querySelectorAll('#detail figure')].map(f => f.title.split('\\n')[0])"
    )
    assert keys == [report_inputs.table.keys[i] for i in top.items]
    assert "colour=yellow" in one(page, "#detail table").text
    bars = page.execute_script(
        "return [...document.querySelectorAll('#detail .hist title')].map(t => parseInt(t.textContent))"
    )
    assert bars == report_inputs.table.histogram(14)[0].tolist()


def test_heat_is_painted_where_geometry_puts_it_and_follows_its_controls(page, report_inputs):
    page.execute_script("document.querySelector(\"#rows tr[data-latent='12']\").click()")
    table, item = report_inputs.table, int(report_inputs.table.top(12, 1).items[0])
    heat = painted(page)
    one(page, "#heat").click()
    plain = painted(page)
    one(page, "#heat").click()
    np.testing.assert_array_equal(painted(page), heat)
    change = np.abs(heat - plain).sum(-1)
    for mode in ("nearest", "bilinear"):
        one(page, f"#detail input[value={mode}]").click()
        drawn = painted(page)
        expected = table.geometry.to_image(table.grid(item, 12), report_inputs.data[item].image.size[::-1], mode)
        scale = 256 // expected.shape[0]
        expected = np.kron(expected, np.ones((scale, scale)))
        strong, silent = expected > 0.8 * expected.max(), expected == 0
        grey = plain @ [0.299, 0.587, 0.114]
        assert (
            np.abs(drawn - (plain + grey[..., None]) / 2)[
                silent
                & (np.roll(silent, 4, 0) & np.roll(silent, -4, 0) & np.roll(silent, 4, 1) & np.roll(silent, -4, 1))
            ].max()
            <= 1
        )
        assert drawn[strong][:, 0].mean() > 150
        assert (drawn[strong][:, 0] - drawn[strong][:, 2]).mean() > 40
    assert change.max() > 0
    page.execute_script(
        "const o = document.querySelector('#detail input[type=range]');o.value = 0; o.dispatchEvent(new Event('input'))"
    )
    assert np.abs(painted(page) - (plain + (plain @ [0.299, 0.587, 0.114])[..., None]) / 2).max() <= 1


def test_the_keyboard_alone_reaches_a_latent(page):
    from selenium.webdriver import ActionChains, Keys

    ActionChains(page).send_keys("/").perform()
    ActionChains(page).send_keys("colour=p", Keys.ARROW_DOWN, Keys.ENTER).perform()
    assert f"Latent {ids(page)[0]} " in one(page, "#detail h2").text
    assert 1 < len(ids(page)) < 58
    first = one(page, "#detail h2").text
    ActionChains(page).send_keys(Keys.ARROW_DOWN).perform()
    assert one(page, "#detail h2").text != first


def test_a_latent_of_class_tokens_says_why_it_has_no_images(page):
    page.execute_script("document.querySelector(\"#rows tr[data-latent='57']\").click()")
    assert "no part of an image" in one(page, "#detail").text


def test_a_label_in_the_table_of_concepts_opens_its_latent(page):
    one(page, "#concepts [data-latent='3']").click()
    assert "Latent 3 · shape=bolt" in one(page, "#detail h2").text


def test_text_of_a_card_never_becomes_markup(page):
    assert page.execute_script("return document.querySelectorAll('dd b, pre b').length") == 0
    assert "</script><b>not markup</b>" in one(page, ".facts").text


def test_the_page_reads_well_in_dark_mode_and_on_a_narrow_screen(page):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 600, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        colour = page.execute_script(
            "const style = getComputedStyle(document.body);"
            "return ['backgroundColor', 'color'].map(k => style[k].match(/\\d+/g).map(Number))"
        )
        assert sum(colour[0]) < 150
        assert sum(colour[1]) > 600
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert one(page, "#table").is_displayed()


def test_a_signed_dictionary_has_two_galleries(browser, signed_inputs, tmp_path):
    path = build_report(signed_inputs, tmp_path / "signed.html", n_images=4)
    browser.get(path.as_uri() + "#latent=30")
    wait(browser, "return document.documentElement.dataset.ready === 'yes'")
    assert "Most positive" in one(browser, "#detail").text
    assert "Most negative" in one(browser, "#detail").text
    values = browser.execute_script(
        "return [...document.querySelectorAll('#detail figcaption b')].map(b => Number(b.textContent))"
    )
    assert len(values) == 8
    assert all(v > 0 for v in values[:4])
    assert all(v < 0 for v in values[4:])
