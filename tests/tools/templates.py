"""Chat templates in the manner of the families that call tools, and tokenizers that have their tokens."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import AddedToken

from draft_service.text import Tokenizer
from tests.api.scripted import byte_tokenizer

_BEGIN = "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>{% endif %}"
_TURN = "<|start|>{{ message.role }}\n"
_PROMPT = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"


def _template(calls: str, result: str = "<|start|>tool\n{{ message.content }}<|end|>", prompt: str = _PROMPT) -> str:
    called = f"{{% if message.role == 'assistant' and message.tool_calls %}}{_TURN}{calls}<|end|>"
    resulting = f"{{% elif message.role == 'tool' %}}{result}"
    plain = f"{{% else %}}{_TURN}{{{{ message.content }}}}<|end|>{{% endif %}}"
    return f"{_BEGIN}{{% for message in messages %}}{called}{resulting}{plain}{{% endfor %}}{prompt}"


_SAID = "{% if message.content %}{{ message.content }}\n{% endif %}"
_EACH = "{% for call in message.tool_calls %}{% set function = call.function %}"
_JSON = '{"name": "{{ function.name }}", "arguments": {{ function.arguments | tojson }}'
_ONE = "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call at most') }}{% endif %}"
_COMMA = "{% if not loop.last %}, {% endif %}"
_NEWLINE = "{% if not loop.first %}{{ '\n' }}{% endif %}"

TAGS = _template(f"{_SAID}{_EACH}{_NEWLINE}<tool_call>\n{_JSON}}}\n</tool_call>{{% endfor %}}")
"""As Hermes and Qwen."""

THINKING = TAGS.replace(_PROMPT, _PROMPT.replace("{% endif %}", "<think>\n{% endif %}"))
"""As QwQ: every answer begins with a thought."""

LIST = _template(f'[CALLS][{_EACH}{_JSON}, "id": "{{{{ call.id }}}}"}}{_COMMA}{{% endfor %}}]')
"""As Mistral's: ids are given, and nothing is said before."""

MARKED = _template(
    f"{_SAID}{_EACH}[CALLS]{{{{ function.name }}}}[ARGS]{{{{ function.arguments | tojson }}}}{{% endfor %}}"
)
"""As Mistral's later ones."""

BARE = _template(_ONE + _EACH + _JSON.replace('arguments":', 'parameters":') + "}{% endfor %}")
"""As Llama 3: an answer is one call, or text."""

AS_TEXT = _template(f"{_EACH}<call>{{{{ function.name + '\n' + function.arguments }}}}</call>{{% endfor %}}")
"""As DeepSeek's: arguments stay the text that they came as."""

PARAMETERS = _template(
    f"{_EACH}<tool_call><function={{{{ function.name }}}}>"
    "{% for name, value in function.arguments.items() %}<{{ name }}>{{ value }}</{{ name }}>{% endfor %}"
    "</function></tool_call>{% endfor %}"
)
"""As Qwen3-Coder: arguments are no JSON."""

SORTED = _template(
    f"{_EACH}<tool_call>{{{{ function.name }}}}:{{{{ function.arguments | dictsort }}}}</tool_call>{{% endfor %}}"
)
"""As FunctionGemma: arguments are no JSON, and as text an error of Python's."""

UNNAMED_END = _template(f"{_EACH}[CALLS]{{{{ function.name }}}}{{{{ function.arguments | tojson }}}}{{% endfor %}}")
"""Where the name ends is not said."""

COUNTED = _template(
    f"{_EACH}[CALLS]{{{{ function.name }}}} {{{{ loop.index0 }}}} {{{{ function.arguments | tojson }}}}{{% endfor %}}"
)
"""As Kimi's: calls are numbered behind their names."""

ENDLESS = TAGS.replace("</tool_call>{% endfor %}<|end|>", "</tool_call>{% endfor %}")
"""An answer with calls is not ended by an end token of the model's."""

NUMBERED = _template(f'{_EACH}[CALLS]{{"id": "{{{{ loop.index0 }}}}", {_JSON[1:]}}}{{% endfor %}}')
"""As Cohere's."""

IGNORANT = "{% for message in messages %}" + _TURN + "{{ message.content }}<|end|>{% endfor %}" + _PROMPT
"""As most small models: nothing of tools."""

USER_FIRST = "{% if messages[0].role != 'user' %}{{ raise_exception('users begin') }}{% endif %}" + IGNORANT
"""As Gemma's, without system messages."""


class Family(NamedTuple):
    """A template, and the tokens of its marks: whether each is special, and so has no text."""

    template: str
    marks: dict[str, bool]

    def tokenizer(self) -> Tokenizer:
        return byte_tokenizer(self.template, [AddedToken(name, special=it_is) for name, it_is in self.marks.items()])


_TAGS = {"<tool_call>": False, "</tool_call>": False}

FAMILIES = {
    "tags": Family(TAGS, _TAGS | {"<think>": False, "</think>": False}),
    "tags, as text": Family(TAGS, {}),
    "thinking": Family(THINKING, _TAGS | {"<think>": True, "</think>": True}),
    "list": Family(LIST, {"[CALLS]": True}),
    "marked": Family(MARKED, {"[CALLS]": True, "[ARGS]": True}),
    "bare": Family(BARE, {}),
    "as text": Family(AS_TEXT, {"<call>": True, "</call>": True}),
    "parameters": Family(PARAMETERS, {}),
    "numbered": Family(NUMBERED, {"[CALLS]": True}),
    "sorted": Family(SORTED, {}),
    "unnamed end": Family(UNNAMED_END, {}),
    "counted": Family(COUNTED, {}),
    "endless": Family(ENDLESS, {}),
    "ignorant": Family(IGNORANT, {}),
    "user first": Family(USER_FIRST, {}),
}
