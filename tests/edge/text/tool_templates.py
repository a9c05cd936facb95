"""Chat templates with tools, short ones in the manner of published ones, one for each syntax of calls."""

from __future__ import annotations

_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    "{% endif %}# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)


def _chatml(call: str, *, before: str = "", between: str = "", behind: str = "", answer: str = "") -> str:
    """ChatML with calls; answer: what an answer has before its content."""
    return (
        _TOOLS
        + "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
        + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}"
        + "<|im_start|>assistant\n" + answer + "{{ m.content }}{% if m.tool_calls %}"
        + "{% if m.content %}{{ '\\n' }}{% endif %}" + before
        + "{% for c in m.tool_calls %}{% set c = c.function or c %}{% if not loop.first %}" + between
        + "{% endif %}" + call + "{% endfor %}" + behind + "{% endif %}<|im_end|>\n{% elif m.role == 'tool' %}"
        + "{% if loop.previtem and loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n"
        + "{{ m.content }}\n</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n"
        + "{% endif %}{% endif %}{% endfor %}" + _OPEN
    )  # fmt: skip


# Thinking stays in the answers after the last question, and goes from those before it.
_THOUGHT = (
    "{% set asked = namespace(at=-1) %}{% for x in messages %}{% if x.role == 'user' %}"
    "{% set asked.at = loop.index0 %}{% endif %}{% endfor %}{% if m.reasoning_content and loop.index0 > asked.at %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
)
QWEN3 = (
    _chatml(
        '<tool_call>\n{"name": "{{ c.name }}", "arguments": {% if c.arguments is string %}{{ c.arguments }}'
        "{% else %}{{ c.arguments | tojson }}{% endif %}}\n</tool_call>",
        between="{{ '\\n' }}",
        answer=_THOUGHT,
    )
    + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
CODER = _chatml(
    "<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    between="{{ '\\n' }}",
)
MINICPM5 = (
    _chatml(
        '<function name="{{ c.name }}">{% for k, v in c.arguments.items() %}<param name="{{ k }}">'
        "{% set t = v if v is string else v | tojson(ensure_ascii=False) %}"
        "{% if '<' in t or '&' in t or '\n' in t %}<![CDATA[{{ t }}]]>{% else %}{{ t }}{% endif %}</param>"
        "{% endfor %}</function>",
    )
    + "{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
MINICPM4_MCP = _chatml(
    "{{ c.name }}({% for k, v in c.arguments.items() %}{% if not loop.first %}, {% endif %}{{ k }}="
    "{{ v | tojson }}{% endfor %})",
    before="<|tool_call_start|>\n```python\n",
    between="{{ '\\n' }}",
    behind="{{ '\\n' }}```\n<|tool_call_end|>",
)
LFM2 = _chatml(
    "{{ c.name }}({% for k, v in c.arguments.items() %}{% if not loop.first %}, {% endif %}{{ k }}="
    "{{ v | tojson }}{% endfor %})",
    before="<|tool_call_start|>[",
    between=", ",
    behind="]<|tool_call_end|>",
)
LLAMA32 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if loop.first and tools %}{% for t in tools %}{{ t | tojson(indent=4) }}\n{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('One call at once') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.first and tools %}<|tool|>{{ tools | tojson }}"
    "<|/tool|>{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _OPEN
TEMPLATES = {
    "qwen3": QWEN3,
    "coder": CODER,
    "minicpm5": MINICPM5,
    "minicpm4-mcp": MINICPM4_MCP,
    "lfm2": LFM2,
    "llama3.2": LLAMA32,
}
