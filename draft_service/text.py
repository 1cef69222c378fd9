"""Text to tokens and back: the tokenizer, the chat template, incremental detokenising, stop strings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pipedec.errors import ModelError, RequestError
from pipedec.model.grammar import named_tokens
from pipedec.model.tokenizer import backend_of, read_tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders put for bytes that are not (yet) a character
USER: Mapping[str, Any] = {"role": "user", "content": "What is it?"}  # whom templates are tried with
RESERVED_OPTIONS = frozenset({"messages"}).union(
    *(
        inspect.signature(each).parameters
        for each in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    )
)


class Tokenizer:
    """A model's tokenizer, safe to use from several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: Iterable[int] = ()) -> None:
        """`end_tokens`: the ids that end an answer, besides the tokenizer's own."""
        self._hf, self.backend = tokenizer, backend_of(tokenizer)
        backend = self.backend
        added = backend.get_added_tokens_decoder()
        self._added = {token: entry.content for token, entry in added.items()}
        self._alphabet = _byte_alphabet() if "ByteLevel" in repr(backend.decoder) else {}
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_tokens = frozenset((*own, *end_tokens))
        self.special_tokens = frozenset(token for token, entry in added.items() if entry.special)
        self.named_tokens = named_tokens(backend)
        self.chat_template = str(tokenizer.chat_template or "")  # of several, all

    def encode(self, text: str) -> list[int]:
        """The tokens of a plain prompt, with the special tokens that this model wants around one."""
        return self._encode(text, special=True)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """The tokens of a conversation, up to where the assistant's answer begins.

        `options` are variables of the model's chat template. Raises `RequestError` if there is no template, or
        the template refuses the messages.
        """
        if reserved := sorted(RESERVED_OPTIONS & options.keys()):
            raise RequestError(f"{reserved[0]} cannot be set here", f"chat_template_kwargs.{reserved[0]}")
        return self._encode(self.render(messages, tools, options), special=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
        *,
        opens: bool = True,
    ) -> str:
        """The text of a conversation, up to where the assistant's answer begins if it `opens` one. Raises
        `RequestError` as `encode_chat` does."""
        if not self._hf.chat_template:
            raise RequestError("this model has no chat template; use /v1/completions", "messages")
        try:
            text: str = self._hf.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=opens, **options
            )
        except RecursionError as error:
            param = "chat_template_kwargs" if options else "messages"
            raise RequestError("what the chat template is given is nested too deeply", param) from error
        except Exception as error:  # a template is a program
            reason = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise RequestError(f"the chat template refuses these messages: {reason}", "messages") from error
        return text

    def _encode(self, text: str, *, special: bool) -> list[int]:
        """In a batch of one: other than `encode`, that lets other threads run meanwhile."""
        (encoding,) = self.backend.encode_batch([text], add_special_tokens=special)
        return list(encoding.ids)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special ones have none, or their names."""
        return self.backend.decode(tokens, skip_special_tokens=not special)

    def token_text(self, token: int) -> str:
        """A token for a person to look at, alone; special ones and parts of characters too."""
        return self.token_bytes(token).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that one token stands for, perhaps only a part of a character."""
        if token in self._added:
            return self._added[token].encode()
        piece = self.backend.id_to_token(token) or ""  # models pad their vocabulary: ids that no text has
        if self._alphabet:
            return bytes(self._alphabet[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def load_tokenizer(directory: Path, gguf_file: str | None = None) -> Tokenizer:
    """The tokenizer of a model in a local directory, or of a GGUF file in it. Raises `ModelError`."""
    return Tokenizer(read_tokenizer(directory, gguf_file), set() if gguf_file else _configured_end_tokens(directory))


def _configured_end_tokens(directory: Path) -> set[int]:
    """Chat models often end an answer with more tokens than the tokenizer's one: those their configuration lists."""
    tokens: set[int] = set()
    for path in (directory / "generation_config.json", directory / "config.json"):
        if path.exists():
            try:
                listed = json.loads(path.read_text()).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise ModelError(f"{path}: is not a JSON object ({error})") from error
            tokens.update([listed] if isinstance(listed, int) else listed or ())
    return tokens


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for U+0100 onwards, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Detokenizer:
    """The text of one sequence, token by token: all pieces joined are `Tokenizer.decode` of all tokens, or of the whole
    less that of the tokens `before`, which it continues.

    With every token a short window of recent ones is decoded. It begins with the tokens of the piece before, since
    decoders look at neighbours (the space before a word shows only after another token). A text that ends in
    replacement characters is perhaps the beginning of a character: it waits, but not for more than the three tokens
    that such a beginning can have, so bytes that never become a character cost no more than others.

    Decoders with byte fallback spoil a whole run of byte tokens when one is invalid, also characters before
    it; those have been sent, rightly, and stay.
    """

    MAX_PARTIAL = 3  # bytes of an unfinished UTF-8 character, so tokens, and replacement characters, too
    MAX_WINDOW = 32
    MAX_BEFORE = 8  # tokens: enough for decoders to see that a word, or a character, began before

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), shown: Collection[int] = ()) -> None:
        """The special tokens `shown` are text too: their names. The others are `hidden`."""
        self._tokenizer, self.hidden = tokenizer, tokenizer.special_tokens.difference(shown)
        self._window = [token for token in before[-self.MAX_BEFORE :] if token not in self.hidden]
        text = self._decode()
        broken = len(text) - len(text.rstrip(REPLACEMENT))
        self._sent = len(text) - min(broken, self.MAX_PARTIAL)  # characters of the window's text that are out
        self._fresh = 0  # tokens since the text was last complete

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if token in self.hidden:
            return ""
        self._window.append(token)
        self._fresh += 1
        text = self._decode()
        broken = len(text) - len(text.rstrip(REPLACEMENT))
        if not broken:
            end = len(text)
        elif self._fresh <= self.MAX_PARTIAL:
            end = self._sent
        else:
            end = len(text) - min(broken, self.MAX_PARTIAL)
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        if piece and not broken:
            self._keep(self._fresh, unsent=0)
            self._fresh = 0
        elif len(self._window) > self.MAX_WINDOW:
            self._keep(self.MAX_WINDOW // 2, unsent=len(text) - self._sent)
        return piece

    def flush(self) -> str:
        """What still waited: the sequence is over."""
        piece = self._decode()[self._sent :] if self._fresh else ""
        self._window, self._sent, self._fresh = [], 0, 0
        return piece

    def _keep(self, num_tokens: int, unsent: int) -> None:
        """Shorten the window to its last tokens, of whose text the last `unsent` characters are not out."""
        self._window = self._window[-num_tokens:]
        self._fresh = min(self._fresh, num_tokens)
        self._sent = len(self._decode()) - unsent

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, special=True)


def num_undecided(text: str, wanted: Collection[str]) -> int:
    """The number of characters at the end of a text that may be the beginning of one of the wanted strings."""
    beginnings = {each[0] for each in wanted}
    for start in range(max(0, len(text) - max(map(len, wanted), default=1) + 1), len(text)):
        if text[start] in beginnings and any(each.startswith(text[start:]) for each in wanted):
            return len(text) - start
    return 0


class StopStrings:
    """Holds back what may be the beginning of a stop string; what it lets through never has to be taken back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    @property
    def num_held(self) -> int:
        """Characters that wait."""
        return len(self._held)

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can go out, and whether a stop string was reached: the one that is complete first."""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        end = len(text) - num_undecided(text, self._stops)
        self._held = text[end:]
        return text[:end], False

    def flush(self) -> str:
        """What was held back: no more text comes."""
        held, self._held = self._held, ""
        return held
