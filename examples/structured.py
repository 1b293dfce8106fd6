"""JSON that keeps to a schema, a tool call, and log-probabilities, from a running peer, with the `openai` client.

    nsllm up &
    python examples/structured.py http://127.0.0.1:8700

Prints one line of each.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1] if len(sys.argv) > 1 else 'http://127.0.0.1:8700'}/v1", api_key="unused")
MODEL = client.models.list().data[0].id

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
    },
    "required": ["name", "born"],
    "additionalProperties": False,
}
reply = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "Who was Ada Lovelace?"}],
    response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
)
print("schema:", sorted(json.loads(reply.choices[0].message.content or "")))

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
reply = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
    tools=[{"type": "function", "function": {"name": "weather", "description": "Weather now", "parameters": CITY}}],
    tool_choice="required",
    parallel_tool_calls=False,
)
(call,) = reply.choices[0].message.tool_calls or []
print("tool:", call.type == "function" and call.function.name, sorted(json.loads(call.function.arguments)))

reply = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "Is water wet?"}],
    extra_body={"guided_choice": ["yes", "no"]},
    logprobs=True,
    top_logprobs=2,
)
told = reply.choices[0].logprobs
print("choice:", reply.choices[0].message.content, [token.token for token in (told and told.content) or []])
