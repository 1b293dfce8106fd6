"""Tokenizer and template of the real backend."""

from __future__ import annotations

import signal

import pytest

from nsllm.node.engine import backend as module
from nsllm.node.engine.backend import TemplateError
from nsllm.record import Message

HELLO = (Message(role="user", content="hi"),)


@pytest.fixture
def put_template(backend, monkeypatch):
    """Gives the model another chat template."""
    if hasattr(backend, "_chat"):
        return lambda template: monkeypatch.setattr(backend._chat, "template", template)
    return lambda template: monkeypatch.setattr(backend._tokenizer, "chat_template", template)


def test_text_goes_to_tokens_and_back(backend):
    assert backend.text(backend.tokens("Grüße, 世界! 🦊 ok")) == "Grüße, 世界! 🦊 ok"


def test_special_words_of_a_user_stay_out_of_the_text(backend):
    assert backend.text([2, *backend.tokens("a"), 3]) == "a"


def test_a_template_that_takes_for_ever_is_stopped(backend, put_template, monkeypatch):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    put_template(loop)
    monkeypatch.setattr(module, "TEMPLATE_LIMIT_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TemplateError, match=r"longer than 0\.05 s"):
        backend.chat_tokens(HELLO)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0]['content'].nothing.at.all }}",
        "{% broken",
        "{{ range(10**9) | list }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(backend, put_template, template):
    put_template(template)
    with pytest.raises(TemplateError, match="refuses this conversation"):
        backend.chat_tokens(HELLO)


def test_only_the_beginning_of_a_huge_text_is_embedded(backend):
    (row,) = backend.encoder.read(["a " * 1_000_000])
    assert len(row) == 256
