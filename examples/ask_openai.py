"""Ask a peer with the `openai` client, and hear what the network made of the answer.

    python examples/ask_openai.py [http://127.0.0.1:8700]

CI runs this against a devnet. The client needs nothing of NS-LLM: what is new stands beside OpenAI's fields.
"""

from __future__ import annotations

import sys

import openai

api = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8700"
client = openai.OpenAI(base_url=f"{api}/v1", api_key="unused")  # a peer on loopback needs no key
model = client.models.list().data[0].id  # the chat model comes first

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    max_tokens=96,
    stream=True,
    extra_body={"visibility": "public"},  # `private` stays on this peer, and has no receipt
)
completion_id = ""
about: dict[str, str] = {}
for chunk in stream:
    completion_id = chunk.id
    about = getattr(chunk, "nsllm", None) or about  # stands in the last chunk
    print(chunk.choices[0].delta.content or "", end="", flush=True)

print(f"\n\nfrom {about['source']}, publication {about['publication']}, receipt {completion_id}")
