"""Names of languages as engines and files write them ("english", "eng", "en-US", "en-orig") to the code of two letters ("en").

Standard library only. Host side, never jax.
"""

import re

# ISO 639-1 of the languages that Whisper knows, with their English names, which servers answer with
_NAMES = (
    "en english,zh chinese,de german,es spanish,ru russian,ko korean,fr french,ja japanese,pt portuguese,tr turkish,pl polish,"
    "ca catalan,nl dutch,ar arabic,sv swedish,it italian,id indonesian,hi hindi,fi finnish,vi vietnamese,he hebrew,"
    "uk ukrainian,el greek,ms malay,cs czech,ro romanian,da danish,hu hungarian,ta tamil,no norwegian,th thai,ur urdu,"
    "hr croatian,bg bulgarian,lt lithuanian,la latin,mi maori,ml malayalam,cy welsh,sk slovak,te telugu,fa persian,lv latvian,"
    "bn bengali,sr serbian,az azerbaijani,sl slovenian,kn kannada,et estonian,mk macedonian,br breton,eu basque,is icelandic,"
    "hy armenian,ne nepali,mn mongolian,bs bosnian,kk kazakh,sq albanian,sw swahili,gl galician,mr marathi,pa punjabi,"
    "si sinhala,km khmer,sn shona,yo yoruba,so somali,af afrikaans,oc occitan,ka georgian,be belarusian,tg tajik,sd sindhi,"
    "gu gujarati,am amharic,yi yiddish,lo lao,uz uzbek,fo faroese,ps pashto,tk turkmen,nn nynorsk,mt maltese,sa sanskrit,"
    "lb luxembourgish,my myanmar,bo tibetan,tl tagalog,mg malagasy,as assamese,tt tatar,ln lingala,ha hausa,ba bashkir,"
    "su sundanese"
)
_CODES = {name: code for code, name in (entry.split() for entry in _NAMES.split(","))}
_CODES |= {"mandarin": "zh", "castilian": "es", "flemish": "nl", "valencian": "ca", "burmese": "my", "iw": "he", "nb": "no"}
# ISO 639-2, which the names of films have: of some languages there are two
_CODES |= dict.fromkeys(["zho", "chi"], "zh") | dict.fromkeys(["deu", "ger"], "de") | dict.fromkeys(["fra", "fre"], "fr")
_CODES |= dict.fromkeys(["nld", "dut"], "nl") | dict.fromkeys(["ell", "gre"], "el") | dict.fromkeys(["ces", "cze"], "cs")
_CODES |= dict.fromkeys(["ron", "rum"], "ro") | dict.fromkeys(["slk", "slo"], "sk") | dict.fromkeys(["fas", "per"], "fa")
_CODES |= {"eng": "en", "spa": "es", "rus": "ru", "kor": "ko", "jpn": "ja", "por": "pt", "tur": "tr", "pol": "pl", "cat": "ca"}
_CODES |= {"ara": "ar", "swe": "sv", "ita": "it", "ind": "id", "hin": "hi", "fin": "fi", "vie": "vi", "heb": "he", "ukr": "uk"}
_CODES |= {"dan": "da", "hun": "hu", "nor": "no", "tha": "th", "hrv": "hr", "bul": "bg", "srp": "sr"}
_UNKNOWN = ("und", "unknown", "auto", "mul", "zxx")  # what ISO and engines write where they do not know


def language_code(name: str | None) -> str | None:
    """ "English" -> "en", "en-US" -> "en", "eng" -> "en"; a code that is not known here stays ("haw"). None: no language."""
    text = (name or "").strip().lower()
    text = _CODES.get(text, text)
    primary = re.split(r"[-_]", text)[0]
    code = _CODES.get(primary, primary)
    return None if code in _UNKNOWN or not re.fullmatch(r"[a-z]{2,3}", code) else code


def is_language(name: str) -> bool:
    """Whether a part of a file's name is that of a language: "en-US" is, "One" and "mkv" are not."""
    primary = re.split(r"[-_]", name.lower())[0]
    return primary in _CODES or primary in _CODES.values() or primary in _UNKNOWN or primary in ("yue", "haw", "fil")
