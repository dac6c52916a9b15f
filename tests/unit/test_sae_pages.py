"""Pages of features: in a browser, and piece by piece."""

import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sae_tiny import made
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.sae import SAEError
from hooked_asr.sae.pages.logits import direction_logits
from hooked_asr.sae.pages.pages import feature_pages
from hooked_asr.sae.pages.png import grey_png
from hooked_asr.sae.reading.read import read_features

SITE, DECODER = "encoder.1.hook_resid_post", "decoder.1.hook_resid_post"
HOSTILE = '<script>document.title="x"</script>&"\''
_DURATIONS = """<script>addEventListener("load", () => {
  const all = [...document.querySelectorAll("audio")];
  document.body.dataset.durations = all.map((one) => one.duration).join(" ");
});</script>"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("tiny"))
    return HookedWhisper.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, draw, rows = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i in range(4):
        path = folder / f"{i}.wav"
        soundfile.write(path, draw.normal(0, 0.1, 9000 + 2000 * i), 16_000)
        words = [[HOSTILE, 0.0, 0.2], [f"plain{i}", 0.2, 0.7]]
        rows.append({"audio": path, "text": "ask it", "language": "en", "words": words})
    return rows


@pytest.fixture(scope="module")
def sae(model):
    return made(model, SITE, 6)


@pytest.fixture(scope="module")
def reading(sae, model, clips):
    return read_features(sae, model, clips, words="words", top=3, progress=False)


@pytest.fixture(scope="module")
def pages(reading, model, sae, tmp_path_factory):
    return feature_pages(
        reading, model, sae, out=tmp_path_factory.mktemp("pages"), progress=False
    ).parent


def in_browser(page, fragment=""):
    """The page's document once its scripts have run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=4000", f"file://{page}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_active_feature_has_a_page_that_needs_nothing_else(pages, reading):
    index = (pages / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(features/[^"]+)"', index)
    assert [int(Path(one).stem) for one in links] == reading.active
    for page in [pages / "index.html", *(pages / one for one in links)]:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>)]+)', text)
        for one in fetched:
            assert one.startswith(("data:", "../index.html", "features/"))
            assert not one.startswith(".") or (page.parent / one).is_file()


def test_text_of_labels_is_never_taken_for_html(pages):
    for page in pages.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script>document" not in text
    assert any("&lt;script&gt;document" in page.read_text() for page in pages.rglob("*.html"))


def test_sounds_play_for_as_long_as_their_excerpts_last(pages, reading, tmp_path):
    number = reading.active[0]
    text = (pages / "features" / f"{number:05d}.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", _DURATIONS + "</body>"))
    found = re.search(r'data-durations="([^"]+)"', in_browser(tmp_path / "page.html"))
    spans = [one.span for one in reading.features[number].excerpts]
    assert len(spans) == 3
    told = [float(one) for one in found[1].split()]
    lasts = [soundfile.info(one.audio).duration for one in reading.features[number].excerpts]
    # The last position of a clip may hear up to 20 ms behind its end.
    for duration, (start, end), whole in zip(told, spans, lasts, strict=True):
        assert duration == pytest.approx(min(end, whole) - start, abs=1e-3)


def test_a_search_hides_the_rows_that_do_not_match(pages, reading):
    shown = in_browser(pages / "index.html")
    rows = re.findall(r"<tr( hidden=\"\")?><td class=\"text\" data-v=\"(\d+)\"", shown)
    assert [int(number) for _, number in rows] == reading.active
    assert not any(hidden for hidden, _ in rows)
    found = in_browser(pages / "index.html", "#plain2")
    rows = re.findall(r"<tr( hidden=\"\")?><td class=\"text\" data-v=\"(\d+)\"", found)
    notes = {number: reading.note(number) for number in reading.active}
    wanted = [
        number
        for number, note in notes.items()
        if "plain2" in [*note.under("word"), note.best.label if note.best else ""]
    ]
    assert 0 < len(wanted) < len(notes)
    assert [int(number) for hidden, number in rows if not hidden] == wanted


def test_the_decoders_pages_tell_tokens(model, clips, tmp_path):
    sae = made(model, DECODER, 5)
    reading = read_features(sae, model, clips, texts="text", top=2, progress=False)
    index = feature_pages(reading, model, sae, out=tmp_path, progress=False)
    page = next((index.parent / "features").iterdir()).read_text(encoding="utf-8")
    assert "speaks for" in page
    assert '<p class="tokens"><span' in page
    assert page.count("data:audio/flac") == 2


def test_a_directions_logits_are_the_slope_of_the_models_own(model):
    drawn = torch.Generator().manual_seed(0)
    stream, direction = torch.randn(2, 32, generator=drawn, dtype=torch.float64)
    # Across the stream, where the norm's scale does not change.
    centred = stream - stream.mean()
    direction -= centred * (direction @ centred) / centred.square().sum()
    weight, bias = (one.double() for one in model.decoder_final_ln.parameters())

    def logits(x):
        normed = torch.nn.functional.layer_norm(x, (32,), weight, bias, eps=0.0)
        return normed @ model.W_U.double()

    with torch.no_grad():
        slope = (logits(stream + 1e-4 * direction) - logits(stream - 1e-4 * direction)) / 2e-4
    want = slope * stream.std(correction=0)
    found = direction_logits(model, direction.float()).double()
    torch.testing.assert_close(found, want - want.mean(), rtol=1e-4, atol=1e-4)


def test_an_autoencoder_of_another_site_is_refused(reading, model, tmp_path):
    with pytest.raises(SAEError, match="give the one that was read"):
        feature_pages(reading, model, made(model, DECODER, 6), out=tmp_path, progress=False)
    with pytest.raises(SAEError, match="was not read"):
        feature_pages(reading, model, out=tmp_path, features=[6], progress=False)


def test_a_recording_that_is_gone_is_told(reading, model, tmp_path):
    gone = replace(
        reading, clips=[replace(one, audio=str(tmp_path / "no.wav")) for one in reading.clips]
    )
    with pytest.raises(SAEError, match=r"cannot be shown: .*no\.wav"):
        feature_pages(gone, model, out=tmp_path, progress=False)


def test_a_picture_is_the_pixels_that_it_was_made_of():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    content = grey_png(pixels)
    size = struct.unpack(">II", content[16:24])
    start = content.index(b"IDAT")
    length = struct.unpack(">I", content[start - 4 : start])[0]
    rows = zlib.decompress(content[start + 4 : start + 4 + length])
    assert size == (7, 5)
    assert rows == b"".join(b"\0" + row.tobytes() for row in pixels)
