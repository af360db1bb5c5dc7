"""Text: what a word is, numbers of words, and what a sample lacks."""

import json
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import BadMedia, Media, MissingModality, Sample, UserError, Window
from mmssl_media.text import Text, words_of

WORDS = ["the", "a", "don't", "onion", "350", "naïve", "щи", "stir", "l'eau"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return path


def read(modality: Text, /, **fields: str) -> list[list[int]]:
    with Media(Sample("x", None, fields=fields)) as media:
        numbers = modality.read(media, Window(0.0, 0.0), None)
    assert numbers.dtype == modality.dtype == torch.int64
    assert tuple(numbers.shape) == modality.shape
    return numbers.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't pre-heat at 350°F", ["don't", "pre", "heat", "at", "350", "f"]),
        ("it\u2019s 'quoted' rock 'n' roll''s", ["it's", "quoted", "rock", "n", "roll", "s"]),
        ("snake_case e\u0301te\u0301 ÉTÉ", ["snake", "case", "été", "été"]),
        ("你好 мир", ["你好", "мир"]),
        (" \n\t!?...' ", []),
    ],
)
def test_what_a_word_is(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def _slow_words(text: str) -> list[str]:
    """Character by character."""
    import unicodedata

    text = unicodedata.normalize("NFC", text.replace("\u2019", "'").lower())
    words, word = [], ""
    for place, sign in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        within = sign == "'" and before.isalnum() and after.isalnum()
        if sign.isalnum() or within:
            word += sign
        elif word:
            words.append(word)
            word = ""
    return [*words, word] if word else words


@settings(deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("aB'_ \u20190é\u0301İß"), st.characters())))
def test_words_are_runs_of_letters_and_digits(text: str) -> None:
    assert words_of(text) == _slow_words(text)


@settings(deadline=None)
@given(st.text())
def test_words_stay_words(text: str) -> None:
    words = words_of(text)
    assert words_of(" ".join(words)) == words
    assert words_of("\u2019 ".join(words)) == words


def test_numbers_are_lines_and_zero_is_padding(vocabulary: Path) -> None:
    text = Text(vocabulary=vocabulary, texts=2, words=4)
    assert read(text, text="Stir THE onion, don\u2019t burn it") == [[8, 1, 4, 3], [0, 0, 0, 0]]
    assert read(text, text="l'eau!") == [[9, 0, 0, 0], [0, 0, 0, 0]]
    assert text.kind == "text"
    assert text.shape == (2, 4)
    assert torch.equal(text.empty(), torch.zeros(2, 4, dtype=torch.int64))
    batch = torch.arange(8).view(1, 2, 4)
    assert text.prepare(batch, None) is batch


def test_defaults_are_vatts(vocabulary: Path) -> None:
    text = Text(vocabulary=vocabulary)
    assert text.shape == (5, 16)
    assert text.size == 65_536


def test_several_texts(vocabulary: Path) -> None:
    text = Text(vocabulary=vocabulary, texts=3, words=2)
    several = ["an onion", "nothing known", "", "stir the a", "350", "щи"]
    # Those without a known word are passed over; what is too long or too many is cut.
    assert read(text, texts=json.dumps(several), text="the") == [[4, 0], [8, 1], [5, 0]]
    assert read(text, texts=json.dumps(several[:2])) == [[4, 0], [0, 0], [0, 0]]
    single = Text(vocabulary=vocabulary, texts=1, words=2)
    assert read(single, texts=json.dumps(several)) == [[4, 0]]


def test_unknown_words(vocabulary: Path) -> None:
    drop = Text(vocabulary=vocabulary, texts=1, words=4)
    token = Text(vocabulary=vocabulary, texts=1, words=4, size=20, unknown="token")
    assert read(drop, text="chop an onion and stir") == [[4, 8, 0, 0]]
    assert read(token, text="chop an onion and stir") == [[19, 19, 4, 19]]


def test_lines_beyond_the_size_are_not_used(vocabulary: Path) -> None:
    # 4 is the last of five numbers; as a token it is no word's.
    assert read(Text(vocabulary=vocabulary, texts=1, words=3, size=5), text="onion 350 a") == [
        [4, 2, 0]
    ]
    token = Text(vocabulary=vocabulary, texts=1, words=3, size=5, unknown="token")
    assert read(token, text="onion don't a") == [[4, 3, 2]]


@pytest.mark.parametrize("unknown", ["drop", "token"])
def test_what_lacks_text(vocabulary: Path, unknown: str) -> None:
    text = Text(vocabulary=vocabulary, unknown=unknown)  # type: ignore[arg-type]
    for fields in (
        {},
        {"text": "  "},
        {"text": "none of these"},
        {"texts": "[]"},
        {"texts": '["unheard of", "the"]'},
        {"texts": "", "text": ""},
    ):
        with pytest.raises(MissingModality):
            read(text, **fields)
    assert read(text, texts=" ", text="the")[0][0] == 1  # an empty value of a list's column


@pytest.mark.parametrize("damaged", ["[", "the", '"the"', '["the", 1]', '{"the": 1}', "[" * 10**5])
def test_damaged_texts_are_bad_media(vocabulary: Path, damaged: str) -> None:
    with pytest.raises(BadMedia, match="no JSON list"):
        read(Text(vocabulary=vocabulary), texts=damaged)


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.lists(st.sampled_from([*WORDS, "unknown", "Щи"]), max_size=9).map(" ".join),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(
    TEXTS,
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(3, 12),
    st.sampled_from(["drop", "token"]),
)
def test_numbers_of_any_text(
    vocabulary: Path, several: list[str], words: int, texts: int, size: int, unknown: str
) -> None:
    text = Text(vocabulary=vocabulary, words=words, texts=texts, size=size, unknown=unknown)  # type: ignore[arg-type]
    known = WORDS[: size - (2 if unknown == "token" else 1)]
    try:
        rows = read(text, texts=json.dumps(several))
    except MissingModality:
        first = [w in known for w in words_of(several[0])]
        assert not any(first[:words] if unknown == "token" else first)
        return
    assert rows == read(text, texts=json.dumps(several))
    assert rows[0][0] != 0
    expected = []
    for one in several:
        numbers = [known.index(w) + 1 if w in known else size - 1 for w in words_of(one)]
        if unknown == "drop":
            numbers = [known.index(w) + 1 for w in words_of(one) if w in known]
        numbers = numbers[:words]
        if numbers and (unknown == "drop" or any(n != size - 1 for n in numbers)):
            expected.append(numbers)
    for row, numbers in zip(rows, [*expected, *[[]] * texts], strict=False):
        assert all(0 <= number < size for number in row)
        assert row == numbers + [0] * (words - len(numbers))


def test_known_words_come_back(vocabulary: Path) -> None:
    text = Text(vocabulary=vocabulary, texts=1)
    numbers = read(text, text=" ".join(WORDS))[0]
    assert [WORDS[number - 1] for number in numbers if number] == WORDS


def test_a_vocabularys_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xef\xbb\xbfthe\r\n\r\nThe\r\nthe\r\nonion\r\nonion\r\n")
    assert Text(vocabulary=path, texts=1).ids("Onion the") == [5, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9\n", "UTF-8"), (b"", "no line is a word"), (b"Two Words\nand more\n", "no line")],
)
def test_what_is_no_vocabulary(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Text(vocabulary=path)
    assert "\n" not in str(caught.value)


def test_a_large_vocabulary_is_read_as_far_as_its_size(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    letters = string.ascii_lowercase
    words = [a + b + c for a in letters for b in letters for c in letters]
    path.write_text("".join(f"{word}\n" for word in words))
    text = Text(vocabulary=path, size=2**14, texts=1)
    assert text.ids(" ".join(words[2**14 - 2 : 2**14])) == [2**14 - 1]
