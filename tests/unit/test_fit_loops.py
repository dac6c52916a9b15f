"""Tokens of loops, against labels written by hand, in a store of a tiny model's transcripts."""

import numpy as np
import pandas as pd
import pytest

from hooked_asr.features import FeatureStore
from hooked_asr.probes import ProbeError, fit_loops, loop_labels
from hooked_asr.probes.loops import LOOP, TEXT

WIDTH = 4
SITE = "decoder.0.hook_resid_post"


class Store(FeatureStore):
    """A store of transcripts whose tokens are these."""

    fingerprint, pool, sites = "w", "tokens", (SITE,)

    def __init__(self, said):
        self.index = {"model": "m"}
        self._rows = [
            (clip, i, token, ord(token.strip()[0]), clip)
            for clip, tokens in said.items()
            for i, token in enumerate(tokens)
        ]

    def table(self):
        return pd.DataFrame(self._rows, columns=["clip", "position", "token", "token_id", "group"])

    def __getitem__(self, site):
        # A feature that tells loops: how often the token has been said before.
        seen, rows = {}, []
        for clip, _, token, _, _ in self._rows:
            n = seen[clip, token] = seen.get((clip, token), 0) + 1
            rows.append([n, *np.random.default_rng(len(rows)).normal(size=WIDTH - 1)])
        return np.array(rows, dtype=np.float32)


@pytest.fixture
def clips(tmp_path):
    def made(**texts):
        for name in texts:
            (tmp_path / f"{name}.wav").touch()
        return [
            {"audio": str(tmp_path / f"{name}.wav"), "id": name, "text": text}
            for name, text in texts.items()
        ]

    return made


def test_what_comes_behind_the_rounds_that_were_said_is_of_the_loop(clips):
    store = Store(
        {
            "chant": [" No", ",", " no", ",", " no", ",", " no", ",", " no", ",", " no", "."],
            "right": [" No", ",", " no", ",", " no", ",", " no", "."],
            "sentence": [" I", " see", "."],
            "unknown": [" so", " so", " so", " so", " so", " I", " see"],
        }
    )
    given = clips(chant="No, no, no, no.", right="No, no, no, no.", sentence="I see.", unknown="")
    labels = iter(loop_labels(store, given))
    found = {
        clip: [next(labels) for _ in rows]
        for clip, rows in store.table().groupby("clip", sort=False).groups.items()
    }
    assert found["chant"] == [TEXT] * 7 + [LOOP] * 4 + [TEXT]
    assert set(found["right"] + found["sentence"]) == {TEXT}
    assert found["unknown"] == [TEXT] * 3 + [LOOP] * 2 + [TEXT] * 2


def test_a_probe_tells_them_from_text_and_names_the_store(clips):
    loops = {f"c{i}": [" no", ","] * (8 + i) for i in range(5)}
    given = clips(**dict.fromkeys(loops, "No, no, no."))
    options = {"folds": 2, "n_permutations": 1, "n_resamples": 20, "progress": False}
    found = fit_loops(Store(loops), given, **options)
    assert found.classes == [LOOP, TEXT]
    assert found.scores[SITE]["auc"].value > 0.9
    probe = found.probe()
    assert (probe.origin.pool, probe.origin.weights, probe.name) == ("tokens", "w", "loops")


def test_what_has_no_loops_or_no_tokens_is_refused(clips):
    store = Store({"a": [" I", " see"]})
    with pytest.raises(ProbeError, match="all 2 tokens are 'text'"):
        fit_loops(store, clips(a="I see."))
    with pytest.raises(ProbeError, match="none of those given"):
        loop_labels(store, clips(b="I see."))
    store.table = lambda: pd.DataFrame({"clip": ["a"]})
    with pytest.raises(ProbeError, match="are no tokens"):
        loop_labels(store, clips(a="I see."))
