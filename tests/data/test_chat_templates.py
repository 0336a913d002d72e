import os
import signal

import pytest

from jaxlab.data import chat_templates
from jaxlab.data.chat_templates import render_chat

MESSAGES = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]


def test_template_features():
  chat = [{"role": "user", "content": "<ü>", "n": [1, 2]}]
  assert render_chat("{{ messages[0] | tojson }}", chat) == (
    '{"role": "user", "content": "<ü>", "n": [1, 2]}'
  )
  assert render_chat("{{ messages[0].n | tojson(indent=1) }}", chat) == "[\n 1,\n 2\n]"
  loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
  assert render_chat(loop, chat) == "01"
  assert len(render_chat("{{ strftime_now('%Y') }}", chat)) == 4
  assert render_chat("{{ tools }}", chat, tools="hammer") == "hammer"
  # Blocks leave no blank lines.
  assert render_chat("a\n  {% if true %}\nb\n  {% endif %}\nc", chat) == "a\nb\nc"


@pytest.mark.parametrize(
  "template, words",
  [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% for %}", "template fails"),
    ("{{ ''.__class__.__mro__ }}", "template fails"),
    ("{{ messages.append(1) }}", "template fails"),
    ("{{ 1 / 0 }}", "template fails: ZeroDivisionError division by zero"),
    ("{% include 'x' %}", "template fails: TypeError no loader"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "template fails: RecursionError"),
    ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "template fails: RecursionError"),
    ("{% for i in range(10**9) %}{% endfor %}", "template fails: OverflowError"),
    ("{{ 'a' * 10**10 }}", "template fails: MemoryError"),
  ],
)
def test_failing_templates_raise(template, words):
  with pytest.raises(ValueError, match=words):
    render_chat(template, list(MESSAGES))


LONG = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [LONG, "{{ 9 ** (9 ** 9) }}"])
def test_templates_that_never_end_are_ended(monkeypatch, template):
  monkeypatch.setattr(chat_templates, "_SECONDS", 0.05)
  with pytest.raises(ValueError, match=r"template fails: it runs for more than 0.05 s"):
    render_chat(template, MESSAGES)
  assert render_chat("{{ messages[1].content }}", MESSAGES) == "cd"


def test_an_interrupted_conversation_answers_no_later_one(monkeypatch):
  monkeypatch.setattr(chat_templates, "_SECONDS", 60.0)

  def stop(signum, frame):
    raise KeyboardInterrupt

  previous = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, 0.2)
  with pytest.raises(KeyboardInterrupt):
    render_chat(LONG, MESSAGES)
  signal.signal(signal.SIGALRM, previous)
  assert render_chat("b", MESSAGES) == "b"


def test_what_is_no_json_is_named():
  with pytest.raises(ValueError, match="messages and variables must be JSON: .* type object"):
    render_chat("a", [{"role": "user", "content": object()}])


def test_a_process_that_was_killed_is_replaced():
  assert render_chat("a", MESSAGES) == "a"
  process = chat_templates._start(os.getpid())
  process.kill()
  process.wait()
  with pytest.raises(ValueError, match="its process, of at most 1024 MiB, ended with status -9"):
    render_chat("a", MESSAGES)
  assert render_chat("a", MESSAGES) == "a"
