"""Chat templates with tools, short ones in the manner of published ones, one for each syntax of calls."""

from __future__ import annotations

_CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set asked = namespace(at=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set asked.at = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content and loop.index0 > asked.at %}
            {{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content }}
        {%- if m.tool_calls %}
            {%- if m.content %}{{- '\\n' }}{% endif %}
            {{- BEFORE }}
            {%- for call in m.tool_calls %}
                {%- set c = call.function or call %}
                {%- if not loop.first %}{{- BETWEEN }}{% endif %}
CALL
            {%- endfor %}
            {{- BEHIND }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
PROMPT
{%- endif %}
"""
_CLOSED = "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}"
_PYTHON = """
{{- c.name + '(' }}
{%- for k, v in c.arguments.items() %}
    {{- ', ' if not loop.first else '' }}{{- k + '=' }}{{- v | tojson }}
{%- endfor %}
{{- ')' }}"""


def _chatml(call: str, before: str = "", between: str = "", behind: str = "", prompt: str = "") -> str:
    found = _CHATML.replace("CALL", call).replace("PROMPT", prompt)
    for name, text in (("BEFORE", before), ("BETWEEN", between), ("BEHIND", behind)):
        found = found.replace(name, repr(text))
    return found


QWEN3 = _chatml(
    """
{{- '<tool_call>\\n{"name": "' + c.name + '", "arguments": ' }}
{{- c.arguments if c.arguments is string else c.arguments | tojson }}
{{- '}\\n</tool_call>' }}""",
    between="\n",
    prompt=_CLOSED + "{% endif %}",
)
CODER = _chatml(
    """
{{- '<tool_call>\\n<function=' + c.name + '>\\n' }}
{%- for k, v in c.arguments.items() %}
    {{- '<parameter=' + k + '>\\n' }}{{- v if v is string else v | tojson }}{{- '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}""",
    between="\n",
)
MINICPM5 = _chatml(
    """
{{- '<function name="' + c.name + '">' }}
{%- for k, v in c.arguments.items() %}
    {%- set t = v if v is string else v | tojson(ensure_ascii=False) %}
    {{- '<param name="' + k + '">' }}
    {{- '<![CDATA[' + t + ']]>' if '<' in t or '&' in t or '\\n' in t else t }}{{- '</param>' }}
{%- endfor %}
{{- '</function>' }}""",
    prompt=_CLOSED + "{% else %}{{- '<think>\\n' }}{% endif %}",
)
MINICPM4_MCP = _chatml(
    _PYTHON, before="<|tool_call_start|>\n```python\n", between="\n", behind="\n```\n<|tool_call_end|>"
)
LFM2 = _chatml(_PYTHON, before="<|tool_call_start|>[", between=", ", behind="]<|tool_call_end|>")
LLAMA32 = """
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
    {%- if loop.first and tools %}{% for t in tools %}{{- t | tojson(indent=4) }}{% endfor %}{% endif %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('One call at once') }}{% endif %}
        {{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
        {{- m.tool_calls[0].function.arguments | tojson }}{{- '}' }}
    {%- else %}
        {{- m.content }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
PHI4 = """
{%- for m in messages %}
    {{- '<|' + m.role + '|>' + m.content }}
    {%- if loop.first and tools %}{{- '<|tool|>' }}{{- tools | tojson }}{{- '<|/tool|>' }}{% endif %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}
"""
PHI4_MINI = """
{%- for m in messages %}
    {%- if m.role == 'system' and 'tools' in m and m['tools'] is not none %}
        {{- '<|' + m.role + '|>' + m.content + '<|tool|>' + m['tools'] + '<|/tool|>' + '<|end|>' }}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% else %}{{- eos_token }}{% endif %}
"""
SMOLLM3 = """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- set given = messages[0].content if messages[0].role == 'system' else '' %}
{%- if '/no_think' in given %}{% set mode = '/no_think' %}{% endif %}
{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\\n' }}
{{- 'Reasoning Mode: ' + mode + '\\n\\n' + given.replace('/no_think', '').replace('/think', '').rstrip() }}
{%- if xml_tools or python_tools %}
    {%- set ns = namespace(text='\\n\\n### Tools\\n\\n<tools>\\n') %}
    {%- for tool in xml_tools[:] %}{% set ns.text = ns.text ~ (tool | string) ~ '\\n' %}{% endfor %}
    {{- ns.text + '</tools>\\\n\\\nWrite calls between <tool_call> and </tool_call>.' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
    {%- if m.role == 'user' or m.role == 'tool' %}
        {{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
        {{- m.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
{%- endif %}
"""
MISTRAL = """
{%- if messages[0].role == 'system' %}
    {%- set system, messages = messages[0].content, messages[1:] %}
{%- endif %}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools is not none and m == asked[-1] %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {{- tool | tojson }}{{- ', ' if not loop.last else '][/AVAILABLE_TOOLS]' }}
            {%- endfor %}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.last and system is defined else '') }}
        {{- m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('Ids of calls have nine letters and digits') }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + ', ' }}
        {{- '"call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
PLAIN = """
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
TEMPLATES = {
    "qwen3": QWEN3,
    "coder": CODER,
    "minicpm5": MINICPM5,
    "minicpm4-mcp": MINICPM4_MCP,
    "lfm2": LFM2,
    "llama3.2": LLAMA32,
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
