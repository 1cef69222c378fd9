"""Tokens to text in pieces: nothing lost, nothing taken back, nothing held longer than needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from draft_service.text import Detokenizer, StopStrings, Tokenizer, load_tokenizer
from pipedec.errors import ModelError, RequestError
from tests.api.scripted import byte_tokenizer, tokens_of
from tests.tiny import tiny_model

BYTES = byte_tokenizer()


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: a space belongs to the word after it and the text's first one is dropped; bytes as fallback."""
    words = ["▁", "▁▁▁", "▁a", "▁the", "b", "é", "."]
    vocabulary = {piece: i for i, piece in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))


SENTENCEPIECE = sentencepiece_like()
START = 7 + 256


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@given(st.lists(st.integers(0, 259), max_size=200))
def test_pieces_of_any_tokens_join_to_the_whole(tokens: list[int]) -> None:
    assert "".join(pieces(BYTES, tokens)) == BYTES.decode(tokens)


@given(st.binary(max_size=80), st.text(max_size=10))
def test_pieces_of_broken_bytes_between_text_join_to_the_whole(broken: bytes, text: str) -> None:
    tokens = tokens_of(BYTES, text.encode() + broken + text.encode())
    assert "".join(pieces(BYTES, tokens)) == BYTES.decode(tokens)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=60))
def test_a_character_goes_out_with_its_last_byte(text: str) -> None:
    expected = [piece for character in text for piece in [""] * (len(character.encode()) - 1) + [character]]
    assert pieces(BYTES, tokens_of(BYTES, text.encode())) == [*expected, ""]


@given(st.lists(st.sampled_from([*range(7), START, *"€é🙂a"]), max_size=60))
def test_pieces_with_leading_spaces_and_byte_fallback_join_to_the_whole(parts: Sequence[int | str]) -> None:
    tokens = [
        token for part in parts for token in ([part] if isinstance(part, int) else (7 + byte for byte in part.encode()))
    ]
    assert "".join(pieces(SENTENCEPIECE, tokens)) == SENTENCEPIECE.decode(tokens)


def test_a_text_that_is_continued_keeps_the_space_of_its_first_word() -> None:
    the, a = 3, 2
    detokenizer = Detokenizer(SENTENCEPIECE, [START, the])
    assert [detokenizer.push(token) for token in (a, the)] == [" a", " the"]
    assert Detokenizer(SENTENCEPIECE, [START]).push(a) == "a"


@given(st.lists(st.integers(0, 259), max_size=40), st.text(max_size=20))
def test_what_continues_a_text_is_the_rest_of_the_whole(before: list[int], text: str) -> None:
    """Also of a character that began before."""
    tokens = tokens_of(BYTES, text.encode())
    detokenizer = Detokenizer(BYTES, before)
    said = "".join([*map(detokenizer.push, tokens), detokenizer.flush()])
    whole, known = BYTES.decode([*before, *tokens]), BYTES.decode(before)
    assert whole.endswith(said)
    assert len(known) - Detokenizer.MAX_PARTIAL <= len(whole) - len(said) <= len(known)


def test_byte_fallback_keeps_what_is_out_when_a_later_byte_spoils_the_run() -> None:
    euro = [7 + byte for byte in "€".encode()]
    assert "".join(pieces(SENTENCEPIECE, [*euro, 7 + 0xFF, 4])) == "€\ufffd\ufffd\ufffdb"


def test_bytes_that_never_become_a_character_are_not_held_and_the_window_stays_short() -> None:
    detokenizer = Detokenizer(BYTES)
    held = 0
    for token in tokens_of(BYTES, b"\xff" * 300):
        held += 1 - len(detokenizer.push(token))
        assert held <= Detokenizer.MAX_PARTIAL
        assert len(detokenizer._window) <= Detokenizer.MAX_WINDOW
    assert len(detokenizer.flush()) == held


def test_tokens_without_text_keep_the_window_short() -> None:
    detokenizer = Detokenizer(BYTES)
    for _ in range(300):
        assert detokenizer.push(300) == ""
        assert len(detokenizer._window) <= Detokenizer.MAX_WINDOW


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4), st.text(alphabet="abc", max_size=30))
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(stops: list[str], text: str) -> None:
    reached = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = (text[: min(reached)[1]], True) if reached else (text, False)
    for size in (1, 2, 3, max(len(text), 1)):
        watched, out, stopped = StopStrings(stops), "", False
        for start in range(0, len(text), size):
            piece, stopped = watched.push(text[start : start + size])
            out += piece
            if stopped:
                break
        # Pieces longer than a character may complete several stop strings at once: the first to be complete counts.
        assert (out + watched.flush(), stopped) == expected


def test_stop_strings_hold_back_no_more_than_a_beginning() -> None:
    stops = StopStrings(["\n\nUser:", "END"])
    assert [stops.push(piece) for piece in ("a\n", "\nUs", "b", "EN", "E", "N", "D!")] == [
        *(("a", False), ("", False), ("\n\nUsb", False), ("", False)),
        *(("EN", False), ("", False), ("", True)),
    ]


def test_bytes_of_tokens() -> None:
    assert b"".join(BYTES.token_bytes(token) for token in BYTES.encode("aé 🙂")) == "aé 🙂".encode()
    assert [SENTENCEPIECE.token_bytes(token) for token in (2, 5, 7 + 0xE2, START, 999)] == [
        *(b" a", "é".encode(), b"\xe2", b"<s>", b"")
    ]


def test_a_long_prompt_lets_other_threads_run(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path))
    text, begun, turns = "a long prompt, " * 50_000, threading.Event(), 0

    def encode() -> list[int]:
        begun.set()
        return tokenizer.encode(text)

    with ThreadPoolExecutor() as pool:
        tokens = pool.submit(encode)
        begun.wait()
        while not tokens.done():
            turns += 1
    assert len(tokens.result()) > 50_000
    assert turns > 1000


def test_chat_template() -> None:
    tokens = BYTES.encode_chat([{"role": "user", "content": "hi"}], {"suffix": "!"})
    assert b"".join(map(BYTES.token_bytes, tokens)) == b"<|start|>user\nhi<|end|><|start|>assistant\n!"
    assert tokens[0] == 256


@pytest.mark.parametrize(
    ("messages", "options", "param"),
    [
        (["user", "system"], {}, "messages"),
        (["user"], {"tokenize": True}, "chat_template_kwargs.tokenize"),
        (["user"], {"messages": "none"}, "chat_template_kwargs.messages"),
    ],
)
def test_chat_template_refusals(messages: list[str], options: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        BYTES.encode_chat([{"role": role, "content": "x"} for role in messages], options)
    assert refused.value.param == param


def test_a_model_without_a_chat_template_says_so() -> None:
    with pytest.raises(RequestError, match="/v1/completions"):
        byte_tokenizer(template=None).encode_chat([{"role": "user", "content": "x"}], {})


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_a_tokenizer_file_would_cut_or_fill_up_is_whole(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    edited(folder / "tokenizer.json", truncation=truncation, padding=padding)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("a prompt of more than 8")) == "a prompt of more than 8"
    tokens = tokenizer.encode_chat([{"role": "user", "content": "hello, hello"}], {})
    assert tokenizer.decode(tokens) == "user\nhello, hello\nassistant\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE"}}'),
        ("tokenizer.json", None),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}, "tokenizer_class": "T"}'),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_says_so(tmp_path: Path, file: str, content: str | None) -> None:
    folder = tiny_model(tmp_path)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer cannot be loaded .*save_pretrained"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tiny_model(tmp_path) / "generation_config.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=f"{path}: is not a JSON object"):
        load_tokenizer(tmp_path)
