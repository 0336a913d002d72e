import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.data.chat_templates import render_chat
from jaxlab.data.tokenizers import (
  Tokenizer,
  encode_chat,
  load_tokenizer,
  pad_sequences,
)

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}"
  "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [
  {"role": "user", "content": "ab"},
  {"role": "assistant", "content": "cd"},
  {"role": "user", "content": "e"},
  {"role": "assistant", "content": "f"},
]


def characters(template=TEMPLATE):
  """A tokenizer with one token per character, except that "d$" is one token."""

  def encode(text, *, add_special_tokens=True):
    return [ord(c) for c in text.replace("d$", "\x01")]

  def decode(ids, *, skip_special_tokens=False):
    return "".join(map(chr, ids)).replace("\x01", "d$")

  return Tokenizer(encode, decode, 256, chat_template=template, bos_token="^", eos_token="$")


def test_a_chat_and_its_mask():
  tokenizer = characters()
  result = encode_chat(tokenizer, MESSAGES)
  assert tokenizer.decode(result.tokens) == "^<user>ab$<assistant>cd$<user>e$<assistant>f$"
  assert tokenizer.decode(result.tokens[result.loss_mask]) == "cd$f$"
  assert (result.tokens.dtype, result.loss_mask.dtype) == (np.int32, bool)
  cut = encode_chat(tokenizer, MESSAGES, max_length=12)
  np.testing.assert_array_equal(cut.tokens, result.tokens[:12])
  np.testing.assert_array_equal(cut.loss_mask, result.loss_mask[:12])


def test_token_across_a_border_belongs_to_the_later_part():
  # The end of the user's turn and the start of the assistant's are one token.
  template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  chat = [{"role": "user", "content": "abd"}, {"role": "assistant", "content": "$e"}]
  result = encode_chat(characters(template), chat)
  np.testing.assert_array_equal(result.tokens, [ord("a"), ord("b"), 1, ord("e")])
  np.testing.assert_array_equal(result.loss_mask, [False, False, True, True])


def test_loss_mask_is_empty_without_an_assistant():
  result = encode_chat(characters(), MESSAGES[:1])
  assert len(result.tokens) and not result.loss_mask.any()


def test_template_that_rewrites_earlier_turns_raises():
  template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
  with pytest.raises(ValueError, match=r"messages\[1\].* not a prefix"):
    encode_chat(characters(template), MESSAGES)


def test_encode_chat_errors():
  with pytest.raises(ValueError, match="chat_template, got None"):
    encode_chat(characters(None), MESSAGES)
  with pytest.raises(ValueError, match="max_length .* got 0"):
    encode_chat(characters(), MESSAGES, max_length=0)


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  for package in ("tokenizers", "jinja2"):
    monkeypatch.setitem(sys.modules, package, None)
  for call in (lambda: load_tokenizer(tmp_path), lambda: render_chat("", [])):
    with pytest.raises(ImportError, match=r"pip install 'jaxlab\[text\]'"):
      call()


def write(directory, name, content):
  (directory / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def directory(tmp_path):
  """A tokenizer of words."""
  words = ["<unk>", "<s>", "</s>", "hello", "world"]
  core = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  core.add_special_tokens(["<s>", "</s>", "<pad>"])
  core.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  core.save(str(tmp_path / "tokenizer.json"))
  return tmp_path


def test_tokenizer_file_alone(directory):
  result = load_tokenizer(directory)
  assert result.encode("hello world") == [1, 3, 4]
  assert result.encode("hello world", add_special_tokens=False) == [3, 4]
  assert result.decode(np.array([1, 3, 4])) == "<s> hello world"
  assert result.decode([1, 3, 4], skip_special_tokens=True) == "hello world"
  assert result.vocab_size == 6
  assert (result.bos_token_id, result.eos_token_id, result.pad_token_id) == (None, None, None)
  assert result.chat_template is None


def test_special_tokens_and_templates(directory):
  write(directory, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
  write(directory, "special_tokens_map.json", {"eos_token": "<s>", "pad_token": "<pad>"})
  (directory / "chat_template.jinja").write_text("file")
  result = load_tokenizer(directory)
  assert (result.bos_token_id, result.eos_token_id, result.pad_token_id) == (1, 2, 5)
  assert (result.bos_token, result.eos_token, result.chat_template) == ("<s>", "</s>", "file")
  named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
  write(directory, "tokenizer_config.json", {"chat_template": named})
  assert load_tokenizer(directory).chat_template == "b"
  write(directory, "tokenizer_config.json", {"chat_template": named[:1]})
  with pytest.raises(ValueError, match="'tool_use'.* no 'default'"):
    load_tokenizer(directory)


def change(directory, **parts):
  path = directory / "tokenizer.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_truncation_and_padding_of_the_file_are_left_out(directory):
  change(
    directory,
    truncation={"max_length": 1, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
    padding={
      "strategy": {"Fixed": 10**12},
      "direction": "Right",
      "pad_to_multiple_of": None,
      "pad_id": 0,
      "pad_type_id": 0,
      "pad_token": "<unk>",
    },
  )
  assert load_tokenizer(directory).encode("hello world") == [1, 3, 4]


def test_panics_and_bare_exceptions_of_the_library_are_errors(directory):
  tokenizer = load_tokenizer(directory)
  for text in ("\ud800", None):
    with pytest.raises(ValueError, match="the tokenizer cannot encode "):
      tokenizer.encode(text)
  with pytest.raises(ValueError, match="the tokenizer cannot decode its tokens"):
    tokenizer.decode([-1])
  change(directory, pre_tokenizer={"type": "FixedLength", "length": 0})
  with pytest.raises(ValueError, match="the tokenizer cannot encode 'hello': chunk size"):
    load_tokenizer(directory).encode("hello")
  change(directory, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
  with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer: Precompiled"):
    load_tokenizer(directory)


def test_malformed_directories(directory, tmp_path):
  write(directory, "tokenizer_config.json", {"eos_token": "<end>"})
  with pytest.raises(ValueError, match="'eos_token': '<end>'.* not in the vocabulary"):
    load_tokenizer(directory)
  for content, words in (
    ("", "not valid JSON"),
    ("{", "not valid JSON"),
    ("[" * 99999, "not valid JSON"),
    ("[]", "must hold an object, got list"),
    ('{"chat_template": 3}', "tokenizer_config.json: chat_template must be text or a list, got 3"),
    ('{"chat_template": [3]}', "chat templates .* have no 'default'"),
    ('{"chat_template": [{"name": [], "template": "x"}]}', "have no 'default'"),
    ('{"chat_template": [{"name": "default", "template": 3}]}', "have no 'default'"),
    ('{"eos_token": ["</s>"]}', "tokenizer_config.json: eos_token must be text or an object"),
    ('{"eos_token": {"content": 2}}', "tokenizer_config.json: content must be text, got 2"),
  ):
    (directory / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=words):
      load_tokenizer(directory)
  (directory / "tokenizer_config.json").unlink()
  (directory / "chat_template.jinja").write_bytes(b"\xff")
  with pytest.raises(ValueError, match="chat_template.jinja: .* can't decode"):
    load_tokenizer(directory)
  (directory / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="is not a tokenizer"):
    load_tokenizer(directory)
  (directory / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match="tokenizer.json"):
    load_tokenizer(directory)


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4))
def test_padding_on_the_right(sequences):
  tokens, lengths = pad_sequences(sequences, length=6)
  assert tokens.shape == (len(sequences), 6) and tokens.dtype == lengths.dtype == np.int32
  for row, length, sequence in zip(tokens, lengths, sequences):
    assert length == len(sequence)
    assert row.tolist() == sequence + [0] * (6 - length)


def test_padding_width():
  assert pad_sequences([[1], [1, 2, 3]], pad_token_id=-7).tokens.tolist() == [
    [1, -7, -7],
    [1, 2, 3],
  ]
  with pytest.raises(ValueError, match="length 2 .* 3 tokens"):
    pad_sequences([[1, 2, 3]], length=2)
  with pytest.raises(ValueError, match="empty"):
    pad_sequences([])
