"""Metrics against closed forms on logits written out, and word errors against jiwer itself."""

import math
import sys

import jiwer
import pytest
import torch
from tiny import inputs
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.patching import (
    MetricError,
    TextMetric,
    character_error_rate,
    log_prob,
    logit,
    logit_diff,
    preference,
    prob,
    rank,
    transcript_log_prob,
    word_error_rate,
)
from hooked_asr.patching.metric_text import parse_metric
from hooked_asr.speech import WordErrorsError

# Two clips, three positions, four tokens. At position 1 the first clip's probabilities are 1/2,
# 1/4, 1/8 and 1/8, and the second's 1/10, 2/10, 3/10 and 4/10.
SHARES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])


@pytest.fixture
def logits():
    made = torch.full((2, 3, 4), math.nan)  # elsewhere nothing may be read
    made[:, 1] = SHARES.log() + torch.tensor([[3.0], [-7.0]])
    return made


CLOSED_FORMS = {
    "logit": (logit(2, 1), [math.log(1 / 8) + 3, math.log(0.3) - 7]),
    "log_prob": (log_prob(0, 1), [math.log(1 / 2), math.log(0.1)]),
    "prob": (prob(3, 1), [1 / 8, 0.4]),
    "rank of the top, and of the last": (rank(0, 1), [0, 3]),
    "rank of a tie": (rank(2, 1), [2, 1]),  # 3 is as likely in the first clip: it does not count
    "logit_diff": (logit_diff(0, 1, 1), [math.log(2), math.log(1 / 2)]),
    "preference": (preference(0, 1, 1), [math.log(2), math.log(1 / 2)]),
    "counted from the end": (rank(1, -2), [1, 2]),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_closed_forms(logits, case):
    metric, expected = CLOSED_FORMS[case]
    assert metric(logits).tolist() == pytest.approx(expected, rel=1e-5)
    assert metric.reads(3) == range(1, 2)


OF_EACH_CLIP = {
    "logit": (logit, [torch.tensor([2, 3])], [math.log(1 / 8) + 3, math.log(0.4) - 7]),
    "log_prob": (log_prob, [torch.tensor([0, 3])], [math.log(1 / 2), math.log(0.4)]),
    "prob": (prob, [torch.tensor([1, 2])], [1 / 4, 0.3]),
    "rank": (rank, [torch.tensor([1, 0])], [1, 3]),
    "logit_diff": (
        logit_diff,
        [torch.tensor([0, 3]), torch.tensor([1, 1])],
        [math.log(2), math.log(2)],
    ),
    "preference": (
        preference,
        [torch.tensor([0, 3]), torch.tensor([1, 1])],
        [math.log(2), math.log(2)],
    ),
    "one for all": (prob, [torch.tensor([3])], [1 / 8, 0.4]),
}


@pytest.mark.parametrize("case", OF_EACH_CLIP)
def test_clips_may_have_tokens_of_their_own(logits, case):
    make, tokens, expected = OF_EACH_CLIP[case]
    metric = make(*tokens, 1)
    assert metric(logits).tolist() == pytest.approx(expected, rel=1e-5)
    assert metric.name.startswith(make.__name__)


def test_as_many_tokens_as_clips(logits):
    with pytest.raises(MetricError, match="tokens of 3 clips, but the run has 2"):
        prob(torch.tensor([1, 2, 3]), 1)(logits)
    with pytest.raises(MetricError, match="tokens of 3 clips, but the run has 2"):
        transcript_log_prob(torch.zeros(3, 3, dtype=torch.long))(logits)


def test_one_transcript_stands_for_every_clip():
    logits = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 4, 2, 8, 5]])
    each = transcript_log_prob(tokens.repeat(3, 1), 2)(logits)
    assert torch.equal(transcript_log_prob(tokens, 2)(logits), each)


# --- Acoustic or contextual -----------------------------------------------------------------------


def test_preference_is_read_where_the_words_first_differ():
    """Words that share two tokens: the third decides, two positions on."""
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    metric = preference([5, 6, 7, 1], [5, 6, 8], pos=1)
    at = logits[:, 3].log_softmax(-1)
    torch.testing.assert_close(metric(logits), at[:, 7] - at[:, 8])
    assert metric.reads(6) == range(3, 4)
    assert metric.name == "preference([5, 6, 7, 1], [5, 6, 8], pos=1)"


def test_up_to_where_they_differ_it_is_the_difference_of_the_words_log_probabilities(speaker):
    """Of two runs, each forced with one word: what the one position stands for."""
    mel, _ = inputs(speaker, batch=1)
    before, alike, (a, b) = [40, 41, 3], [11, 12], (20, 30)
    runs = [torch.tensor([[*before, *alike, last]]) for last in (a, b)]
    with torch.no_grad():
        logits = [speaker(mel, run) for run in runs]
    summed = [
        sum(
            float(one[0, at - 1].log_softmax(-1)[run[0, at]])
            for at in range(len(before), run.shape[1])
        )
        for one, run in zip(logits, runs, strict=True)
    ]
    metric = preference([*alike, a], [*alike, b], pos=len(before) - 1)
    for one in logits:
        assert float(metric(one)) == pytest.approx(summed[0] - summed[1], abs=1e-5)


def test_words_that_do_not_differ_or_not_in_time():
    with pytest.raises(MetricError, match="do not differ before one of them ends"):
        preference([5, 6], [5, 6, 7], 2)
    with pytest.raises(MetricError, match="do not differ"):
        preference(5, 5)
    with pytest.raises(MetricError, match="1 tokens behind pos=-1, where the run is over"):
        preference([5, 6], [5, 7])
    with pytest.raises(MetricError, match="both words"):
        preference(torch.tensor([1, 2]), [5, 7])


# --- Of transcripts -------------------------------------------------------------------------------

SAID = "Mr. Smith won't eat the grey rice, today."
HEARD = [
    "mister smith will not eat the gray lice",
    "",
    SAID,
    "no " * 13,
]


@pytest.mark.parametrize("heard", HEARD)
def test_error_rates_are_jiwers_of_normalised_texts(heard):
    plain = EnglishTextNormalizer({})
    said, words = plain(SAID), plain(heard)
    assert word_error_rate(SAID)(heard) == pytest.approx(jiwer.wer(said, words))
    assert character_error_rate(SAID)(heard) == pytest.approx(jiwer.cer(said, words))
    american = EnglishTextNormalizer({"grey": "gray"})
    rate = word_error_rate(SAID, normalise=american)(heard)
    assert rate == pytest.approx(jiwer.wer(american(SAID), american(heard)))


def test_language_and_options_go_to_the_decoding():
    metric = word_error_rate("Où est-il ?", "fr", max_new_tokens=9)
    assert metric.options == {"language": "fr", "max_new_tokens": 9}
    assert metric("ou est il") == pytest.approx(1 / 3)
    assert word_error_rate("no").options == {}


def test_nothing_said_or_no_jiwer_is_told_at_once(monkeypatch):
    for said in ("", " ?! "):
        with pytest.raises(MetricError, match="needs something that was said"):
            word_error_rate(said)
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(WordErrorsError, match="need jiwer"):
        word_error_rate("no")


# --- As the command line writes them --------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return HookedWhisper.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("tiny")))


def parsed(speaker, text, words="ask her no", **options):
    tokens = speaker.to_tokens(words)
    mel, _ = inputs(speaker, batch=1)
    return parse_metric(text, speaker, {"mel": mel, "tokens": tokens}, 2, **options)


def test_words_become_metrics(speaker):
    logits = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    ask, her, no = (speaker.to_single_token(word) for word in (" ask", " her", " no"))
    written_out = {
        "rank:her": rank(her, 2),
        "rank:her@4": rank(her, 4),
        "prob:no": prob(no, 3),
        "logit:ask@0": logit(ask, 0),
        "preference:her/ask": preference(her, ask, 2),  # where the first of them stands
        "preference:it/no": preference(speaker.to_single_token(" it"), no, 3),  # or the other
        "preference:her/no@1": preference(her, no, 1),
    }
    for text, metric in written_out.items():
        ours = parsed(speaker, text)
        words = text.partition("@")[0].replace(":", "(")
        assert (ours.at, ours.name) == (metric.at, f"{words}, pos={metric.at})")
        torch.testing.assert_close(ours(logits), metric(logits))


def test_preference_of_words_of_several_tokens(speaker):
    """ " xy" and " xz" share " " and "x": read behind both."""
    ids = [speaker.tokenizer.encode(word, add_special_tokens=False) for word in (" xy", " xz")]
    alike = len(ids[0]) - 1
    assert ids[0][:alike] == ids[1][:alike]
    logits = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    for words in ("no xy", "no xz"):
        ours = parsed(speaker, "preference:xy/xz", words)
        start = len(speaker.to_tokens("no")[0])
        assert ours.at == start - 1 + alike
        expected = logits[0, ours.at, ids[0][-1]] - logits[0, ours.at, ids[1][-1]]
        assert float(ours(logits)) == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(MetricError, match="the text, which has neither"):
        parsed(speaker, "preference:xy/xz", "no")


def test_error_rates_are_of_the_forced_text(speaker):
    for text, make in (("wer", word_error_rate), ("cer", character_error_rate)):
        ours = parsed(speaker, text, asked={"language": "en"})
        assert isinstance(ours, TextMetric)
        assert ours.name == make("no").name
        assert ours.options == {"language": "en"}
        assert (ours("ask her no"), ours("ask him")) == (0.0, make("ask her no")("ask him"))


def test_error_rates_of_a_model_that_is_asked_in_its_tokens(tmp_path):
    model = HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path))
    samples = torch.randn(8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    asked = model.settled(samples)
    run, prompt = (model.to_inputs(samples, text=text, **asked) for text in ("ask no", ""))
    ours = parse_metric("wer", model, run, prompt["tokens"].shape[1], asked)
    assert ours.options == {}
    assert ours("ask") == 0.5


@pytest.mark.parametrize(
    "text",
    ["rank", "rank:no@99", "prob:", "wer:no", "cer@2", "preference:no", "preference:no/", "a:b/c"],
)
def test_metrics_that_are_none(speaker, text):
    with pytest.raises(MetricError):
        parsed(speaker, text)


def test_nothing_to_compare_with(speaker):
    with pytest.raises(MetricError, match="needs something that was said"):
        parsed(speaker, "wer", words="")
