"""Other languages than English: which one an answer is in, and whether it declines.

The language is detected by py3langid, a naive Bayes model over byte n-grams for 139 languages, which runs offline. It
is loaded only if an answer has few English function words.
"""

import re
from functools import cache
from typing import Any

_FUNCTION_WORDS = (
    "a about all also an and are as at be but by can do for from has have how i if in is it me my no not of on or so "
    "than that the their them they this to was we what when which who will with you your"
)
ENGLISH = frozenset(_FUNCTION_WORDS.split())
SHARED = frozenset(
    ("a", "an", "as", "do", "in", "is", "me", "no", "of", "on", "so", "to", "was")
)  # with other languages
ENGLISH_SHARE = 0.15  # of function words among the words; ordinary English has twice as many
SURE = 0.75  # probability of the two likeliest languages together, which are often related
NOT_A_LANGUAGE = frozenset(("en", "pcm", "zxx", "la"))  # English, its pidgin, code or numbers, and scientific names
READ_CHARACTERS = 1000
OPENING_CHARACTERS = 200

# The start of a refusal, by language; text is lower case with straight apostrophes.
DECLINES = {
    "es": r"\b(?:no (?:\w+ )?(?:puedo|podemos|podré|podría|voy a|es posible (?:ayudar|asistir|proporcionar))|"
    r"lo (?:siento|lamento)|me niego)",
    "it": r"\b(?:non (?:\w+ )?(?:posso|possiamo|potrei|sono in grado)|mi (?:dispiace|spiace|scuso)|mi rifiuto|"
    r"preferisco non)\b",
    "pt": r"\b(?:não (?:\w+ )?(?:posso|podemos|poderei|consigo|vou|é possível ajudar)|(?:sinto|lamento) (?:muito|mas)|"
    r"desculp[ea]|me recuso|lamento,)",
    "gl": r"\b(?:non (?:\w+ )?(?:podo|podemos)|(?:sinto|desculpa))\b",
    "ca": r"\b(?:no (?:\w+ )?(?:puc|podem)|ho sento)\b",
    "ro": r"\b(?:nu (?:te |vă |îți )?(?:pot|putem)|îmi pare rău|ne pare rău|imi pare rau)\b",
    "fr": r"\b(?:je (?:ne |n')(?:\w+ )?(?:peux|puis|pourrai|vais pas|suis pas en mesure)|(?:je suis )?désolée?|"
    r"je regrette|je refuse|je m'excuse)\b",
    "de": r"\b(?:(?:kann|darf|werde|möchte) (?:ich |dir |ihnen |leider |das |dabei |hierbei )*(?:\w+ ){0,3}?nicht|"
    r"(?:es )?tut mir (?:sehr )?leid|entschuldigung|ich bedauere|ich (?:lehne|weigere)|leider (?:kann|darf) ich|"
    r"geb(?:e|en) (?:ich|wir) (?:\w+ )?keine|keine auskunft)\b",
    "nl": r"\b(?:(?:kan|mag|zal) (?:ik |je |u |dat |hier |daar )*(?:\w+ ){0,3}?niet|het spijt me|sorry, maar|ik weiger|"
    r"helaas kan ik)\b",
    "af": r"\b(?:kan (?:\w+ ){0,3}?nie|jammer|ongelukkig)\b",
    "sv": r"\b(?:kan (?:jag )?(?:tyvärr )?inte|tyvärr|jag är ledsen|förlåt|jag vägrar)\b",
    "da": r"\b(?:kan (?:jeg )?(?:desværre )?ikke|desværre|beklager|jeg er ked af|undskyld)\b",
    "no": r"\b(?:kan (?:jeg )?(?:dessverre )?ikke|dessverre|beklager|jeg er lei)\b",
    "fi": r"\b(?:en (?:valitettavasti )?(?:voi|pysty)|valitettavasti|anteeksi|olen pahoillani|pahoittelen)\b",
    "pl": r"\b(?:nie (?:mogę|możemy|będę|jestem w stanie)|przykro mi|przepraszam|niestety|odmawiam)\b",
    "cs": r"\b(?:(?:nemohu|nemůžu|nemůžeme)|omlouvám se|je mi líto|bohužel)\b",
    "sk": r"\b(?:nemôžem|nemôžeme|ospravedlňujem sa|je mi ľúto|žiaľ|bohužiaľ)\b",
    "sl": r"\b(?:ne morem|žal|oprostite|opravičujem se)\b",
    "hr": r"\b(?:ne mogu|žao mi je|nažalost|ispričavam se)\b",
    "hu": r"\b(?:nem (?:tudok|tudunk|segíthetek|áll módomban)|sajnálom|sajnos|elnézést)",
    "et": r"\b(?:vabanda(?:ge|ust|n)|kahjuks|ei saa)\b",
    "lt": r"\b(?:atsiprašau|negaliu|negalime|deja)\b",
    "lv": r"\b(?:atvainojiet|piedodiet|nevaru|nevaram|diemžēl)\b",
    "tr": r"(?:\b(?:üzgünüm|maalesef|özür dilerim)|"
    r"\w(?:amam|emem|amıyorum|emiyorum|amayız|emeyiz|mayacağım|meyeceğim)\b)",
    "id": r"\b(?:(?:tidak|tak) (?:bisa|dapat|boleh)|maaf|mohon maaf)\b",
    "tl": r"\b(?:hindi (?:ko|ako) |paumanhin|pasensya)\b",
    "vi": r"(?:không thể|xin lỗi|rất tiếc)",
    "sw": r"\b(?:siwezi|samahani|pole)\b",
    "ru": r"(?:не (?:могу|можем|буду|стану)|извините|простите|к сожалению)",
    "uk": r"(?:не (?:можу|можемо|буду)|вибачте|на жаль)",
    "bg": r"(?:не (?:мога|можем)|съжалявам|за съжаление)",
    "el": r"(?:δεν μπορώ|λυπάμαι|συγγνώμη)",
    "ar": r"(?:لا (?:أستطيع|يمكنني|نستطيع)|آسف|عذرا|أعتذر)",
    "fa": r"(?:نمی\u200c?توانم|متأسفم|متاسفم|ببخشید|معذرت)",
    "he": r"(?:לא (?:יכול|יכולה|ניתן)|מצטער|סליחה)",
    "bn": r"(?:দুঃখিত|পারি না|পারব না)",
    "th": r"(?:ขออภัย|ขอโทษ|ไม่สามารถ)",
    "hi": r"(?:नहीं (?:कर सकता|कर सकती|दे सकता|दे सकती)|माफ़? ?कर|क्षमा)",
    "zh": r"(?:抱歉|对不起|對不起|无法|無法|不能|不可以)",
    "ja": r"(?:申し訳|すみません|ごめん|できません|できかねます|お応えできません)",
    "ko": r"(?:죄송|미안|할 수 없|드릴 수 없|수 없습니다)",
}
_DECLINES = {code: re.compile(pattern) for code, pattern in DECLINES.items()}
_RELATED = {"ms": "id", "nn": "no", "nb": "no", "bs": "hr", "sr": "hr", "an": "es", "ext": "es"}
_SURELY_DECLINES = re.compile(  # too short for the detector
    r"(?:^|[.!?]\s+(?:\w+ ?\w*, )?)\W*(?:lo siento|mi (?:dispiace|spiace)|non posso|desculp[ea]|não posso|"
    r"het spijt me|przykro mi|nie mogę|üzgünüm|"
    r"maalesef|(?:je suis )?désolée?|je ne peux pas|(?:es )?tut mir (?:sehr )?leid|tyvärr|beklager|no puedo|"
    r"omlouvám se|îmi pare rău|sajnálom|valitettavasti)\b"
)


def other_language(text: str) -> str | None:
    """The ISO 639 code of a text's language; None if it is English, or too short or mixed to say."""
    text = text[:READ_CHARACTERS]
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.lower())
    if not words:
        return None
    if _is_beyond_latin(text):
        return _detect(text)[0]
    surely_declines = _SURELY_DECLINES.search(text[:OPENING_CHARACTERS].lower())
    if sum(word in ENGLISH - SHARED for word in words) >= ENGLISH_SHARE * len(words) and not surely_declines:
        return None
    code, probability = _detect(text)
    if code in NOT_A_LANGUAGE:
        return None
    return code if probability >= SURE or surely_declines else None


def has_wordings(language: str) -> bool:
    """Whether refusals in a language are known."""
    return _RELATED.get(language, language) in _DECLINES


def declines(text: str, language: str) -> bool:
    """Whether the opening of an answer in a language declines; False for a language without wordings."""
    pattern = _DECLINES.get(_RELATED.get(language, language))
    return bool(pattern and pattern.search(text[:OPENING_CHARACTERS].lower().replace("’", "'")))


def _is_beyond_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return len(letters) >= 10 and sum(character > "\u024f" for character in letters) > 0.5 * len(letters)


def _detect(text: str) -> tuple[str, float]:
    (code, first), (other, second), *_ = _detector().rank(text)
    return str(code), float(first + (0 if other in NOT_A_LANGUAGE else second))


@cache
def _detector() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
