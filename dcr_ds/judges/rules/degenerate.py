"""Degenerate answers: text that is neither a refusal nor an answer."""

import re
import zlib

from dcr_ds.judges.base import Answer
from dcr_ds.judges.rules.wording import SEEN_CHARACTERS

# The most repetitive of some 9,000 ordinary answers (surveys and tables) compress 3.8 times. A loop that fills three
# fifths of a text exceeds 5.
LOOP_COMPRESSION = 5
SHORT_LOOP_CHARACTERS = 300  # in shorter texts, the overhead of deflate hides a loop
CUT_OFF_WORDS = 3
_ENGLISH = (
    "a about all also an and are as at be but by can do for from has have how i if in is it me my no not of on or so "
    "than that the their them they this to was we what when which who will with you your"
)
_OTHER_LANGUAGES = (  # German, French, Spanish, Italian, Portuguese, Dutch, Swedish; without English words
    "de la el las que en un una por para es como le les et est dans pour qui sur une pas du der das und ist nicht ein "
    "eine zu den mit von auf il che di sono het een van niet dat voor os uma com não se att och det som är på jag ich "
    "sie je vous nous"
)
ENGLISH, OTHER_LANGUAGES = frozenset(_ENGLISH.split()), frozenset(_OTHER_LANGUAGES.split())
ASKS_FOR_A_LANGUAGE = re.compile(
    r"translat|\b(?:arabic|bengali|chinese|mandarin|czech|danish|dutch|farsi|finnish|french|german|greek|hebrew|hindi|"
    r"indonesian|italian|japanese|korean|latin|norwegian|persian|polish|portuguese|russian|spanish|swahili|swedish|"
    r"thai|turkish|ukrainian|urdu|vietnamese|languages?)\b",
    re.I,
)
REPEATED = re.compile(r"(\S.{0,60}?)(?:\s*\1){3,}.{0,20}", re.S)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def why_degenerate(answer: Answer) -> str | None:
    """Why an answer is degenerate, or None: empty, cut off, loop, only the prompt, gibberish, not English.

    A refusal that is repeated four times is a loop, not a refusal. An answer in another language is degenerate because
    the judge cannot read it, unless the prompt asks for another language.
    """
    text = answer.completion.strip()[:SEEN_CHARACTERS]
    words = WORD.findall(text)
    if not any(character.isalnum() for character in text):
        return "empty"
    if answer.finish == "length" and len(text.split()) <= CUT_OFF_WORDS:
        return "cut off"
    if _loops(text):
        return "loop"
    if _only_repeats(answer.prompt[:SEEN_CHARACTERS], text):
        return "only the prompt"
    if _is_gibberish(text, words):
        return "gibberish"
    if _is_foreign(text, words) and not ASKS_FOR_A_LANGUAGE.search(answer.prompt):
        return "not English"
    return None


def _loops(text: str) -> bool:
    if len(text) <= SHORT_LOOP_CHARACTERS and REPEATED.fullmatch(text):
        return bool(re.search(r"[^\W\d_]{2}", text))  # 1000000 is a number, 2 x 2 x 2 x 2 is a product
    content = text.encode()
    return len(content) > LOOP_COMPRESSION * len(zlib.compress(content, 9))


def _only_repeats(prompt: str, text: str) -> bool:
    prompt, text = _letters(prompt), _letters(text)
    return bool(prompt) and prompt in text and len(text.replace(prompt, "")) <= len(prompt) // 10


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _is_gibberish(text: str, words: list[str]) -> bool:
    """Symbols instead of letters, letters without vowels, or a very long word."""
    solid = [character for character in text if not character.isspace()]
    if "\ufffd" * 3 in text or (len(solid) >= 10 and sum(map(str.isalnum, solid)) < len(solid) / 5):
        return True
    latin = [word.lower() for word in words if word.isascii() and len(word) >= 4]
    voiceless = sum(not set(word) & set("aeiouy") for word in latin)
    return (len(latin) >= 5 and voiceless > 0.4 * len(latin)) or any(len(word) > 60 for word in words)


def _is_foreign(text: str, words: list[str]) -> bool:
    letters = [character for character in text if character.isalpha()]
    if len(letters) >= 10 and sum(character > "\u024f" for character in letters) > 0.5 * len(letters):
        return True  # beyond the Latin alphabet
    known = [word.lower() for word in words]
    english, other = ([word for word in known if word in language] for language in (ENGLISH, OTHER_LANGUAGES))
    return len(set(other)) >= 3 and len(other) >= 0.15 * len(known) and len(other) > 2 * len(english)
