"""The nouns of a caption, and the prompts made of them (Xu et al., CVPR 2022, section 3.3).

textblob tags words and finds singulars; the lists here correct its most frequent mistakes on image captions. Indexes
hold nouns: raise their version (`data.index`) with any rule here.
"""

import functools
import importlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal
from unicodedata import category

import numpy as np

from groupvit.errors import input_error
from groupvit.text.templates import IMAGENET_TEMPLATES_80
from groupvit.text.tokenizer import repaired

Style = Literal["paper", "release"]

# NNPS is missing and verbs are present in the release; the paper speaks of nouns.
PAPER_TAGS = frozenset(("NN", "NNS", "NNP", "NNPS"))
RELEASE_TAGS = frozenset(("NN", "NNS", "NNP", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Tagged as nouns, but verbs in nearly every caption, or words that name nothing one could point at.
NOT_NOUNS = _words(
    "jump jumps ride rides leap leaps smiles watches chases talks attempts stares wades hits blows dribbles chews "
    "grabs whilst indoors midair something someone somebody anything anyone everything everyone nothing thing things "
    "other others front side sides middle right half lot lots number kind type asian american german"
)
# Other nouns in -ing are gerunds here ("a man fishing").
NOUNS_IN_ING = _words(
    "building bedding ceiling clothing dwelling earring flooring frosting icing king landing lighting painting parking "
    "pudding railing ring shelving sibling sling spring string swing wedding wing"
)
# Tagged as verbs or adjectives.
ALWAYS_NOUNS = _words(
    "awning bear bears bulldog curb drum husky karate moped net sink sled stick t-shirt t-shirts tracks"
)
# Without a singular, or with another meaning in it (glasses, woods).
UNCHANGED = _words(
    "binoculars canvas christmas claus clothes electronics fireworks gas glasses goggles goods gymnastics headphones "
    "jeans khakis leggings lens news overalls pajamas pants rapids scissors series shorts sports sunglasses texas "
    "thermos tights trousers woods"
)
_IRREGULAR = (
    "calves:calf children:child ears:ear feet:foot geese:goose halves:half hooves:hoof leaves:leaf mice:mouse "
    "people:person shelves:shelf teeth:tooth wives:wife wolves:wolf"
)
SINGULAR = {plural: singular for plural, _, singular in (pair.partition(":") for pair in _IRREGULAR.split())}
# Their photos show a person, whatever the caption calls it.
PERSON_WORDS = _words(
    "adult athlete audience baby batter bicyclist biker boy bride businessman catcher cheerleader chef child climber "
    "cowboy crowd cyclist dancer father female fisherman gentleman girl golfer groom guy hiker jogger kayaker kid lady "
    "male man mother motorcyclist musician officer onlooker parent passenger pedestrian performer person player "
    "policeman racer rider runner singer skateboarder skater skier snowboarder soldier spectator student surfer "
    "swimmer teen teenager toddler tourist woman worker wrestler"
)

# Scripts, comments, tags that close, have attributes or a slash at their end, one that the caption's end cuts, and
# HTML's usual bare ones: CC12M writes <PERSON> for names.
_HTML = re.compile(
    r"<(?P<code>script|style)\b[^<>]*>[^<]*</(?P=code)\s*>|<!\[CDATA\[|\]\]>"
    r"|<!--(?:(?!<!--).)*?-->|</[a-z][^<>]*>|<[a-z](?=[^<>]*(?:=|/>))[^<>]*>|<[a-z]+\s[^<>]*=[\"'][^<>]*$"
    r"|<(?:a|abbr|article|b|big|blockquote|body|br|caption|center|cite|code|dd|del|div|dl|dt|em|figcaption|figure|font"
    r"|h[1-6r]|head|html|i|img|ins|li|mark|nobr|ol|p|pre|q|s|script|section|small|span|strike|strong|style|su[bp]"
    r"|t[dhrt]|table|tbody|thead|u|ul|wbr)\s*>",
    re.IGNORECASE | re.DOTALL,
)
_ADDRESS = re.compile(r"://|@|\w\.[a-z0-9]")  # "a dog.A cat" is none
_LINK = re.compile(r"!?\[([^][]*)\]\([^()\s]*\)")  # Markdown's
_JOINTS = re.compile(r"(?<=[^\W\d_])(?:[][,;:/&|!?+*=~(){}<>_\"]+|--+|\.{2,}|(?<=[a-z]{2})\.(?=[A-Z]))(?=[^\W\d_])")
_VARIANTS = re.compile("[\ufe00-\ufe0f\u20dd-\u20e4]")  # they follow an emoji and have no width
_HYPHENS = {ord("\N{HYPHEN}"): "-", ord("\N{NON-BREAKING HYPHEN}"): "-"}


@functools.cache
def _textblob() -> Any:
    with input_error("nouns need the package textblob", ImportError, advice="pip install textblob"):
        textblob = importlib.import_module("textblob.en")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the files of its lexicon open
        textblob.tag("a man")
    return textblob


@functools.lru_cache(maxsize=2**16)
def lemma(noun: str) -> str:
    """Return the singular of a lower-case noun: person for people; glasses and shorts stay as they are."""
    if noun in SINGULAR:
        return SINGULAR[noun]
    if noun.endswith("men") and noun[:-3] + "man" in _textblob().lexicon:
        return noun[:-3] + "man"
    if noun in UNCHANGED or not noun.endswith("s") or noun.endswith("ss"):
        return noun
    for plural, ending in (("s", ""), ("ies", "y"), ("es", "")):
        if noun.endswith(plural) and noun.removesuffix(plural) + ending in _textblob().lexicon:
            return noun.removesuffix(plural) + ending
    return noun if noun.endswith(("us", "is")) else _textblob().inflect.singularize(noun)


@functools.lru_cache(maxsize=2**10)  # most captions are lower case, and are asked for their nouns in both styles
def _tagged(text: str) -> list[tuple[str, str]]:
    return _textblob().tag(text)


def _paper_nouns(caption: str) -> Iterator[str]:
    after_one, before, tag_before, raw_before = False, "", "", ""
    for word, tag in _tagged(caption.lower()):
        if word in ALWAYS_NOUNS:
            tag = "NNS" if word.endswith("s") else "NN"
        if tag == "VB" and raw_before in ("DT", "JJ"):
            tag = "NN"  # "a purple cross": a verb's base form cannot follow an article or an adjective
        raw_before = tag
        if tag in ("DT", "CD"):
            after_one = word in ("a", "an", "one")
        elif not tag.startswith(("NN", "JJ")):
            after_one = False
        # The tagger calls every verb that is also a noun a noun: "a man races", "two boys race".
        races = after_one and tag_before == "NN" and tag == "NNS" and word not in UNCHANGED
        race = tag_before == "NNS" and tag == "NN" and before not in UNCHANGED
        gerund = word.endswith("ing") and word not in NOUNS_IN_ING
        noun = tag in PAPER_TAGS and not (races or race or gerund or word in NOT_NOUNS)
        if noun and len(word) > 1 and word.replace("-", "").isalpha():
            yield lemma(word)
        before, tag_before = word, tag if noun else ""


def _without_html(caption: str) -> str:
    text = repaired(caption)
    closed = {name.lower() for name in re.findall(r"</(\w+)", text)}
    return re.sub(r"<(\w+)>", lambda tag: " " if tag[1].lower() in closed else f" {tag[1]} ", _HTML.sub(" ", text))


def _apart(caption: str) -> str:
    """Set words apart that a sign joins ("cat,dog", "house…", "dog🐶"): the tagger splits at white space.

    A comma keeps them from becoming a phrase: of "dogs – cat" it would take the second for a verb.
    """
    caption = _LINK.sub(r" \1 ", caption)
    if not caption.isascii():
        signs = _VARIANTS.sub("", caption.translate(_HYPHENS))
        kinds = ((sign, "L" if sign.isascii() else category(sign)) for sign in signs)
        put = {"P": " , ", "S": " , "} | dict.fromkeys(("Ps", "Pe", "Pi", "Pf"), " ") | {"Cf": ""}
        caption = "".join(put.get(kind, put.get(kind[0], sign)) for sign, kind in kinds)
    return re.sub(r"\S+", lambda word: word[0] if _ADDRESS.search(word[0]) else _JOINTS.sub(" , ", word[0]), caption)


@functools.lru_cache(maxsize=2**10)  # those of a caption are asked for again with those of its photo
def nouns(caption: str, *, style: Style = "paper") -> tuple[str, ...]:
    """Return the nouns of a caption.

    Style `paper`: distinct nouns in their order, lower case, in the singular. Style `release`, as the authors' code:
    verbs too, every word as written, with repetitions. HTML is taken out first.
    """
    caption = _without_html(caption)
    if style == "paper":
        return tuple(dict.fromkeys(_paper_nouns(_apart(caption))))
    return tuple(word for word, tag in _tagged(caption) if tag in RELEASE_TAGS)


def noun_prompts(
    caption: str, words: Sequence[str], count: int, generator: np.random.Generator, *, style: Style = "paper"
) -> list[str]:
    """Draw `count` of the caption's nouns `words` without replacement, each in one of CLIP's 80 templates.

    If there are fewer, `release` adds the caption itself and `paper` draws with replacement. A caption without nouns is
    its own prompt.
    """
    draws = min(count, len(words)) if style == "release" else count
    if not words:
        return [caption] * count
    chosen = generator.choice(len(words), draws, replace=draws > len(words))
    templates = generator.integers(len(IMAGENET_TEMPLATES_80), size=draws)
    prompts = [
        IMAGENET_TEMPLATES_80[template].format(words[word]) for word, template in zip(chosen, templates, strict=True)
    ]
    return prompts + [caption] * (count - draws)


def nouns_of_photo(captions: Sequence[str]) -> frozenset[str]:
    """Return the nouns of all captions of one photo, and `person` if one of them is a person."""
    return with_person(noun for caption in captions for noun in nouns(caption, style="paper"))


def nouns_of_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the noun of each tag, lower case: one word in the singular, several ("traffic light") as they are."""
    words = (" ".join(tag.lower().split()) for tag in tags)
    return tuple(dict.fromkeys(word if " " in word else lemma(word) for word in words))


def with_person(nouns: Iterable[str]) -> frozenset[str]:
    """Return the nouns, and `person` if one of them is a person."""
    nouns = frozenset(nouns)
    return nouns if nouns.isdisjoint(PERSON_WORDS) else nouns | {"person"}


def is_word(noun: str) -> bool:
    """Return True for one word: tags may be several ("traffic light"), which `nouns` never finds in a caption."""
    return " " not in noun


def vocabulary(counts: Mapping[str, int], min_count: int) -> dict[str, int]:
    """Return the nouns of at least `min_count` photos, most frequent first; `counts` is how many photos have each."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {noun: count for noun, count in ranked if count >= min_count}
