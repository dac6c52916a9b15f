"""Short everyday sentences, the same in English, Spanish and German, drawn at random.

Words are drawn by Zipf's law and by what goes together (white rice, black coffee), so that a model
has something to learn about which word follows which. Some sentences come from a `MinimalPair`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, product

from hooked_asr.errors import HookedASRError
from hooked_asr.nano import phrases, templates
from hooked_asr.nano.lexicon import GROUPS, LANGUAGES, Word
from hooked_asr.nano.pairs import PAIRS, MinimalPair

PAIR_SHARE = 0.22
SHORT_SHARE = 0.08
LIKELY_SHARE = 0.75  # of a pair's sentences, those that ask for its likelier word
PULL = 12.0  # how many times likelier a word is beside one it goes with
HELD_OUT = 20  # one sentence in so many
FRAGMENT = 4  # a text of fewer words is never held out
ROOM_FOR_OPENER = 8


class GrammarError(HookedASRError):
    """A language, a template or a text that the grammar cannot use."""


@dataclass(frozen=True)
class Sentence:
    """One sentence: parallel texts, or one language's where a minimal pair made it."""

    texts: dict[str, str]
    template: str
    words: tuple[tuple[str, str], ...]  # the group and the English lemma of each slot
    pair: MinimalPair | None = None


@dataclass(frozen=True)
class Template:
    """A parallel sentence with slots: a slot's letter, and the words that may fill it."""

    name: str
    slots: dict[str, tuple[Word, ...]]
    texts: dict[str, str]


def sentence(rng: random.Random) -> Sentence:
    """One sentence, drawn with `rng` alone: the same state gives the same sentence."""
    share = rng.random()
    if share < PAIR_SHARE:
        return _pair_sentence(rng)
    if share < PAIR_SHARE + SHORT_SHARE:
        return rng.choice((_fragment, _counting, _echo))(rng)
    return _templated(rng)


def confused(sentence_text: str, pair: MinimalPair) -> str:
    """The text with the pair's word for its partner, and the partner for the word."""
    swaps = {pair.word.lower(): pair.partner, pair.partner.lower(): pair.word}

    def swap(match: re.Match[str]) -> str:
        other = swaps[match[0].lower()]
        return other[0].upper() + other[1:] if match[0][0].isupper() else other

    text, count = re.subn(rf"\b(?:{'|'.join(swaps)})\b", swap, sentence_text, flags=re.IGNORECASE)
    if not count:
        raise GrammarError(f"{sentence_text!r} has neither {pair.word!r} nor {pair.partner!r}.")
    return text


def held_out(text: str) -> bool:
    """Whether a text is for evaluation only; short fragments never are."""
    if len(text.split()) < FRAGMENT:
        return False
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT == 0


def vocabulary(language: str) -> set[str]:
    """The words, in lower case, that sentences of a language are made of."""
    if language not in LANGUAGES:
        raise GrammarError(f"No language {language!r}; there are {', '.join(LANGUAGES)}.")
    return {word for text in _every_text(language) for word in _words_of(text)}


def _templated(rng: random.Random) -> Sentence:
    (template,) = rng.choices(_TEMPLATES, cum_weights=_TEMPLATE_WEIGHTS)
    chosen = _fill(template.slots, rng)
    texts = {language: _render(template, language, chosen) for language in LANGUAGES}
    if max(len(text.split()) for text in texts.values()) <= ROOM_FOR_OPENER:
        ((_, opener),) = rng.choices(_OPENERS, [weight for weight, _ in _OPENERS])
        texts = {language: _opened(texts[language], opener[language]) for language in LANGUAGES}
    words = tuple((word.group, word.lemma) for word in chosen.values())
    return _spoken(texts, template.name, words)


def _fill(slots: Mapping[str, Sequence[Word]], rng: random.Random) -> dict[str, Word]:
    """A different word for each slot, each drawn by its rank and by the words before it."""
    chosen: dict[str, Word] = {}
    for letter, words in slots.items():
        taken = list(chosen.values())
        weights = [_weight(rank, word, taken) for rank, word in enumerate(words)]
        chosen[letter] = rng.choices(words, weights)[0]
    return chosen


def _weight(rank: int, word: Word, taken: Sequence[Word]) -> float:
    if word in taken:
        return 0.0
    pulled = any(frozenset((word.lemma, other.lemma)) in _COLLOCATIONS for other in taken)
    return (PULL if pulled else 1.0) / (rank + 2)


def _render(template: Template, language: str, chosen: Mapping[str, Word]) -> str:
    def fill(match: re.Match[str]) -> str:
        return phrases.phrase(match[1], language, chosen)

    return phrases.contract(re.sub(r"\{([^}]+)\}", fill, template.texts[language]), language)


def _opened(text: str, opener: str) -> str:
    """The text after a "yes," or an "and"; Spanish puts the second inside a question."""
    if text.startswith("¿") and opener and not opener.endswith(","):
        return f"¿{opener} {text[1:]}"
    return f"{opener} {text}".lstrip()


def _spoken(texts: Mapping[str, str], name: str, words: tuple[tuple[str, str], ...]) -> Sentence:
    return Sentence({key: phrases.capitalised(text) for key, text in texts.items()}, name, words)


def _pair_sentence(rng: random.Random) -> Sentence:
    pair = rng.choice(PAIRS)
    likely = rng.random() < LIKELY_SHARE
    word = pair.word if likely else pair.partner
    frame = rng.choice(pair.frames if likely else pair.partner_frames)
    text = phrases.capitalised(frame.format(word))
    return Sentence({pair.language: text}, "pair", (("pair", word),), pair)


def _fragment(rng: random.Random) -> Sentence:
    return _spoken(rng.choice(_FRAGMENTS), "fragment", ())


def _counting(rng: random.Random) -> Sentence:
    """Two to six numbers in order: "One, two, three.\""""
    numbers = GROUPS["number"][:12]
    length = rng.randint(2, 6)
    start = rng.choice((0, rng.randint(0, len(numbers) - length)))
    counted = numbers[start : start + length]
    texts = {key: ", ".join(word.form(key).base for word in counted) + "." for key in LANGUAGES}
    return _spoken(texts, "counting", tuple((word.group, word.lemma) for word in counted))


def _echo(rng: random.Random) -> Sentence:
    """A word said two to four times: "No, no, no.\""""
    row, times = rng.choice(_ECHOES), rng.randint(1, 3)
    return _spoken({key: _repeated(cell, times) for key, cell in row.items()}, "echo", ())


def _repeated(cell: str, times: int) -> str:
    """ "it is *very* cheap" with "very, " so many times more before the starred word."""
    start, word, end = cell.split("*")
    return start + f"{word}, " * times + word + end


def _every_text(language: str) -> Iterator[str]:
    """Texts that between them hold every word: each slot, and each two that agree, run through."""
    yield from _fixed_texts(language)
    for template in _TEMPLATES:
        first = {letter: words[0] for letter, words in template.slots.items()}
        for one in template.slots:
            for word in template.slots[one]:
                yield _render(template, language, {**first, one: word})
        for one, other in combinations(template.slots, 2):
            if _agree(template.texts[language], one, other):
                for word, fellow in product(template.slots[one], template.slots[other]):
                    yield _render(template, language, {**first, one: word, other: fellow})


def _agree(text: str, one: str, other: str) -> bool:
    """Whether a slot of a template's text says one in a form that depends on the other."""
    slots = (slot.replace("+", "").split() for slot in re.findall(r"\{([^}]+)\}", text))
    return any({one, other} <= set(parts) for parts in slots)


def _fixed_texts(language: str) -> Iterator[str]:
    for row in (*_FRAGMENTS, *_ECHOES, *(opener for _, opener in _OPENERS)):
        yield row[language].replace("*", " ")
    yield from (word.form(language).base for word in GROUPS["number"])
    for pair in PAIRS:
        if pair.language == language:
            yield from (frame.format(pair.word) for frame in pair.frames)
            yield from (frame.format(pair.partner) for frame in pair.partner_frames)


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _parallel(line: str) -> dict[str, str]:
    """A line of three cells, one to a language."""
    cells = [cell.strip() for cell in line.split("|")]
    return dict(zip(LANGUAGES, cells, strict=True))


def _slot(spec: str) -> tuple[str, tuple[Word, ...]]:
    """A slot's letter and words from "c:colour/red/green"; counted things are two or more."""
    letter, _, rest = spec.partition(":")
    group, *lemmas = rest.replace("_", " ").split("/")
    words = tuple(word for word in GROUPS[group] if not lemmas or word.lemma in lemmas)
    if len(words) < len(lemmas):
        raise GrammarError(f"{spec!r} names a word that is not in the group {group!r}.")
    return letter, words[1:] if spec.endswith(":number") else words


def _template(block: str) -> Template:
    head, *texts = block.splitlines()
    name, *slots = head.split()
    return Template(name, dict(map(_slot, slots)), dict(zip(LANGUAGES, texts, strict=True)))


def _collocations() -> frozenset[frozenset[str]]:
    return frozenset(frozenset(pair.split()) for pair in templates.COLLOCATIONS.split(","))


_TEMPLATES = [_template(block) for block in templates.TEMPLATES.strip().split("\n\n")]
# Templates with more slots have more to say, and come up more often.
_TEMPLATE_WEIGHTS = list(accumulate(len(template.slots) ** 2.5 for template in _TEMPLATES))
_FRAGMENTS = [_parallel(line) for line in templates.FRAGMENTS.strip().splitlines()]
_ECHOES = [_parallel(line) for line in templates.ECHOES.strip().splitlines()]
_COLLOCATIONS = _collocations()
_OPENERS = [
    (int(weight), _parallel(cells))
    for weight, _, cells in (
        line.partition("|") for line in templates.OPENERS.strip("\n").splitlines()
    )
]
