"""How a slot is said: articles, plurals, genders, cases, adjectives and contractions.

A slot is a letter and what is asked of its word: "x pl the dat +c" is the plural of x, definite, in
the dative, with c for its adjective ("den roten Äpfeln"); "c for x" makes c agree with x.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hooked_asr.nano.lexicon import Form, Word

_GENDERS = ("m", "f", "n", "pl")
_CASES = {"nom": 0, "acc": 1, "dat": 2}
# Endings by case, then masculine, feminine, neuter, plural.
_STRONG = (("er", "e", "es", "e"), ("en", "e", "es", "e"), ("em", "er", "em", "en"))
_MIXED = (("er", "e", "es", "en"), ("en", "e", "es", "en"), ("en", "en", "en", "en"))
_WEAK = (("e", "e", "e", "en"), ("en", "e", "e", "en"), ("en", "en", "en", "en"))
_EIN = (("", "e", "", "e"), ("en", "e", "", "e"), ("em", "er", "em", "en"))
_DER = (("der", "die", "das", "die"), ("den", "die", "das", "die"), ("dem", "der", "dem", "den"))

_SPANISH_DETERMINERS = {  # masculine, feminine, and their plurals
    "a": ("un", "una", "unos", "unas"),
    "the": ("el", "la", "los", "las"),
    "this": ("este", "esta", "estos", "estas"),
    "my": ("mi", "mi", "mis", "mis"),
}

_CONTRACTIONS = {
    "en": (),
    "es": (
        (r"\bde el\b", "del"),
        (r"\ba el\b", "al"),
        (r"\by (?=h?i(?!e))", "e "),
        (r"\bvino rojo\b", "vino tinto"),
    ),
    "de": ((r"\bin dem\b", "im"), (r"\bzu dem\b", "zum"), (r"\bzu der\b", "zur")),
}


@dataclass(frozen=True)
class Request:
    """What a slot asks of its word."""

    word: Word
    determiner: str
    case: str
    plural: bool
    adjective: Word | None
    agrees_with: Word | None
    past: bool


def phrase(slot: str, language: str, chosen: Mapping[str, Word]) -> str:
    """What a slot of a template becomes, with the words chosen for all its slots."""
    request = _request(slot.split(), chosen)
    say = {"en": _english, "es": _spanish, "de": _german}[language]
    return " ".join(part for part in say(request) if part)


def contract(text: str, language: str) -> str:
    """The text with "de el" as "del", "zu dem" as "zum"."""
    for pattern, short in _CONTRACTIONS[language]:
        text = re.sub(pattern, short, text)
    return text


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, after a "¿" if there is one."""
    start = 1 if text.startswith("¿") else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


def _request(parts: list[str], chosen: Mapping[str, Word]) -> Request:
    asked = parts[1:]
    adjective = next((chosen[part[1]] for part in asked if part[0] == "+"), None)
    fellow = chosen[asked[asked.index("for") + 1]] if "for" in asked else None
    determiner = next((part for part in asked if part in _SPANISH_DETERMINERS), "")
    case = next((part for part in asked if part in _CASES), "nom")
    plural, past = "pl" in asked, "past" in asked
    return Request(chosen[parts[0]], determiner, case, plural, adjective, fellow, past)


def _english(request: Request) -> list[str]:
    noun = request.word.en.other if request.plural else request.word.en.base
    adjective = request.adjective.en.base if request.adjective else ""
    determiner = request.determiner
    if determiner == "a" and (adjective or noun)[0] in "aeiou":
        determiner = "an"
    if determiner == "this" and request.plural:
        determiner = "these"
    return [determiner, adjective, noun]


def _spanish(request: Request) -> list[str]:
    form = request.word.es
    if request.agrees_with:
        return [_spanish_agreeing(form, request.agrees_with.es.gender, request.plural)]
    noun = form.other if request.plural or request.past else form.base
    adjective = ""
    if request.adjective:
        adjective = _spanish_agreeing(request.adjective.es, form.gender, request.plural)
    return [_spanish_determiner(request, form.gender), noun, adjective]


def _spanish_determiner(request: Request, gender: str) -> str:
    if not request.determiner:
        return ""
    # "El agua" and "un agua" keep the a's apart; "esta agua" has no need to.
    masculine = gender == "m" or (
        gender == "a" and not request.plural and request.determiner in ("a", "the")
    )
    return _SPANISH_DETERMINERS[request.determiner][(not masculine) + 2 * request.plural]


def _spanish_agreeing(form: Form, gender: str, plural: bool) -> str:
    """An adjective, or a job that has a feminine, in a noun's gender and number."""
    spelt = form.base
    if gender in ("f", "a"):
        spelt = form.other if form.other != spelt else re.sub("o$", "a", spelt)
    if not plural:
        return spelt
    return spelt + "s" if spelt[-1] in "aeiou" else spelt.replace("ó", "o") + "es"


def _german(request: Request) -> list[str]:
    form = request.word.de
    if request.agrees_with:
        return [form.other if request.agrees_with.de.gender == "f" else form.base]
    row = _CASES[request.case]
    column = _GENDERS.index("pl" if request.plural else form.gender or "m")
    adjective = ""
    if request.adjective:
        endings = {"": _STRONG, "the": _WEAK, "this": _WEAK}.get(request.determiner, _MIXED)
        adjective = request.adjective.de.base + endings[row][column]
    return [_german_determiner(request.determiner, row, column), adjective, _german_noun(request)]


def _german_determiner(determiner: str, row: int, column: int) -> str:
    if determiner == "the":
        return _DER[row][column]
    if determiner == "this":
        return "dies" + _STRONG[row][column]
    return {"a": "ein", "my": "mein"}[determiner] + _EIN[row][column] if determiner else ""


def _german_noun(request: Request) -> str:
    form = request.word.de
    if request.plural:
        needs_n = request.case == "dat" and form.other[-1] not in "ns"
        return form.other + "n" * needs_n
    return form.oblique if form.oblique and request.case != "nom" else form.base
