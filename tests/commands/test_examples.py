import itertools
import json

import numpy as np
import pytest

from jaxlab.commands.examples import (
  Batches,
  Example,
  encode_prompts,
  encode_rows,
  split_examples,
)
from jaxlab.commands.rows import read_rows
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import UsageError

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}


def characters(**options):
  """A tokenizer of one token a character, which opens a text by ^ and closes it by $."""

  def encode(text, *, add_special_tokens=True):
    return [ord(c) for c in (f"^{text}$" if add_special_tokens else text)]

  def decode(ids, *, skip_special_tokens=False):
    return "".join(map(chr, ids))

  options = {"eos_token_id": ord("$"), "eos_token": "$", "bos_token": "^"} | options
  return Tokenizer(encode, decode, 256, **options)


def written(tmp_path, *rows):
  path = tmp_path / "data.jsonl"
  path.write_text(
    "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
  )
  return path


def encoded(path, kind, tokenizer=None, *, max_length=64, vocab_size=256):
  """The text of each sequence, and of what is learnt of it."""
  tokenizer = tokenizer or characters()
  rows = read_rows(path, kind)
  examples, num_cut = encode_rows(rows, tokenizer, vocab_size=vocab_size, max_length=max_length)
  texts = [
    [(tokenizer.decode(t), tokenizer.decode(t[m])) for t, m in zip(e.tokens, e.masks)]
    for e in examples
  ]
  return texts, examples, num_cut


def test_text_is_the_prompt_then_the_response_and_its_end(tmp_path):
  path = written(
    tmp_path, {"prompt": "p", "response": "ab", "other": 1}, "", {"prompt": "qq", "completion": "c"}
  )
  texts, examples, num_cut = encoded(path, "supervised")
  assert texts == [[("^pab$", "ab$")], [("^qqc$", "c$")]]
  assert [example.line for example in examples] == [1, 3] and num_cut == 0
  texts, _, num_cut = encoded(path, "supervised", max_length=4)
  assert texts == [[("^pab", "ab")], [("^qqc", "c")]] and num_cut == 2


def test_a_prompt_ends_where_a_response_begins(tmp_path):
  template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}:"
  tokenizer = characters(chat_template=template + "{% endif %}")
  rows = read_rows(written(tmp_path, {"prompt": "p"}, {"prompt": [USER]}), "prompts")
  prompts = encode_prompts(rows, tokenizer, vocab_size=256, max_length=4)
  assert [tokenizer.decode(example.tokens[0]) for example in prompts] == ["^p", "<q>:"]
  assert all(example.masks[0].all() for example in prompts)
  for options, message in (
    ({"max_length": 3}, "line 2: the prompt has 4 tokens; it must have 1 to 3."),
    ({"vocab_size": 100}, "line 1: token 112 lies outside the model's vocabulary of 100"),
  ):
    with pytest.raises(UsageError, match=message):
      encode_prompts(rows, tokenizer, **({"vocab_size": 256, "max_length": 4} | options))


def test_pairs_and_what_stands_alone(tmp_path):
  path = written(
    tmp_path,
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "c", "rejected": "d"},
  )
  texts, _, _ = encoded(path, "pairs")
  assert [[text for text, _ in row] for row in texts] == [["^pa$", "^pb$"], ["^qc$", "^qd$"]]
  texts, examples, _ = encoded(path, "unpaired")
  # Each beside the next response to another prompt.
  assert [[text for text, _ in row] for row in texts] == [
    ["^pa$", "^pc$"],
    ["^pb$", "^pc$"],
    ["^qc$", "^qa$"],
    ["^qd$", "^qa$"],
  ]
  assert [example.label for example in examples] == [True, False, True, False]
  path = written(
    tmp_path,
    {"prompt": "p", "completion": "a", "label": False},
    {"prompt": "q", "completion": "b", "label": True},
  )
  texts, examples, _ = encoded(path, "unpaired")
  assert texts == [[("^pa$", "a$"), ("^pb$", "b$")], [("^qb$", "b$"), ("^qa$", "a$")]]
  assert [example.label for example in examples] == [False, True]


def test_messages_go_through_the_template(tmp_path):
  template = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
  )
  tokenizer = characters(chat_template=template)
  other = {"role": "assistant", "content": "c"}
  path = written(
    tmp_path,
    {"messages": [USER, BOT, USER, other]},
    {"prompt": [USER, BOT, USER], "completion": [other]},
  )
  texts, _, _ = encoded(path, "supervised", tokenizer)
  whole = "^u:q$a:ab$u:q$a:c$"
  assert texts == [[(whole, "ab$c$")], [(whole, "c$")]]
  path = written(tmp_path, {"chosen": [USER, BOT], "rejected": [USER, other]})
  texts, _, _ = encoded(path, "pairs", tokenizer)
  assert texts == [[("^u:q$a:ab$", "ab$"), ("^u:q$a:c$", "c$")]]


TEMPLATE = (
  "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
  "{% if add_generation_prompt %}a:{% endif %}"
)
OTHER = {"role": "assistant", "content": "c"}
LISTS = {"role": ["user", "assistant"], "content": ["q", "ab"]}
PAIR_OF_CHATS = [("u:q$a:ab$", "ab$"), ("u:q$a:c$", "c$")]


@pytest.mark.parametrize(
  "kind, row, expected",
  [
    ("supervised", {"text": "ab"}, [("^ab$", "ab$")]),
    ("supervised", {"text": "ab$"}, [("^ab$", "ab$")]),
    ("supervised", {"text": [USER, BOT]}, [("u:q$a:ab$", "ab$")]),
    ("supervised", {"messages": LISTS}, [("u:q$a:ab$", "ab$")]),
    ("supervised", {"prompt": "q", "completion": [BOT]}, [("u:q$a:ab$", "ab$")]),
    ("supervised", {"prompt": "q", "completion": [USER, BOT]}, [("u:q$a:ab$", "ab$")]),
    (
      "pairs",
      {"chosen": "It is very blue.", "rejected": "It is very black."},
      [("^It is very blue.$", " blue.$"), ("^It is very black.$", " black.$")],
    ),
    ("pairs", {"chosen": "xyb", "rejected": "xyc"}, [("^xyb$", "b$"), ("^xyc$", "c$")]),
    ("pairs", {"prompt": "q", "chosen": [BOT], "rejected": [OTHER]}, PAIR_OF_CHATS),
    ("pairs", {"prompt": "q", "chosen": [USER, BOT], "rejected": [USER, OTHER]}, PAIR_OF_CHATS),
    ("pairs", {"chosen": LISTS, "rejected": [USER, OTHER]}, PAIR_OF_CHATS),
  ],
)
def test_layouts_of_trl(tmp_path, kind, row, expected):
  texts, _, _ = encoded(written(tmp_path, row), kind, characters(chat_template=TEMPLATE))
  assert texts == [expected]


def test_arrays_and_labels_as_numbers(tmp_path):
  rows = [{"prompt": p, "completion": "a", "label": i} for i, p in enumerate("pq")]
  path = written(tmp_path, *rows)
  texts, examples, _ = encoded(path, "unpaired")
  assert [example.label for example in examples] == [False, True]
  for text in (json.dumps(rows), "\ufeff\n" + json.dumps(rows, indent=2)):
    path.write_text(text)
    again, examples, _ = encoded(path, "unpaired")
    assert again == texts and [example.line for example in examples] == [1, 2]
  path.write_text(json.dumps([rows[0], {"prompt": "p"}]))
  with pytest.raises(UsageError, match=f"^{path}, row 2: column 'label' is missing"):
    read_rows(path, "unpaired")
  path.write_text("[" + json.dumps(rows[0]))
  with pytest.raises(UsageError, match=f"^{path} is not valid JSON"):
    read_rows(path, "unpaired")


GOOD = {"prompt": "p", "response": "a"}


def test_sequences_that_cannot_be_used(tmp_path):
  path = written(tmp_path, GOOD, {"prompt": "pqrst", "response": "a"})
  with pytest.raises(UsageError, match="line 2: the prompt has 6 tokens; .* max_length 6 leaves"):
    encoded(path, "supervised", max_length=6)
  with pytest.raises(UsageError, match=r"line 2: token 116 lies outside .* vocabulary of 116"):
    encoded(path, "supervised", vocab_size=ord("t"))
  with pytest.raises(UsageError, match="line 1: the tokenizer names no eos_token"):
    encoded(path, "supervised", characters(eos_token_id=None))
  with pytest.raises(UsageError, match="line 1: tokenizer must have a chat_template"):
    encoded(written(tmp_path, {"messages": [USER, BOT]}), "supervised")


def test_a_template_cannot_reach_outside_its_sandbox(tmp_path):
  tokenizer = characters(chat_template="{{ messages.__class__.__mro__ }}")
  with pytest.raises(UsageError, match="line 1: template fails: .*unsafe"):
    encoded(written(tmp_path, {"messages": [USER, BOT]}), "supervised", tokenizer)


def examples_of(lengths):
  return [
    Example(i + 1, (np.full(n, i, np.int32),), (np.arange(n) > 0,), i % 2 == 0)
    for i, n in enumerate(lengths)
  ]


def test_every_example_counts_once_an_epoch():
  examples = examples_of([3, 40, 17, 5, 16, 9, 33, 20, 2, 6, 48])
  batches = Batches(
    examples, batch_size=4, max_length=50, seed=3, references=np.arange(11)[:, None]
  )
  assert batches.steps_per_epoch == 3
  orders = []
  for _ in range(2):
    epoch = [next(batches) for _ in range(3)]
    seen = np.concatenate([b["index"][b["weight"] > 0] for b in epoch])
    assert sorted(seen) == list(range(11))
    orders.append(seen.tolist())
    widths = sorted(b["tokens"].shape[-1] for b in epoch)
    assert widths == [16, 32, 50] or widths == [16, 50, 50]
    for batch in epoch:
      for row, index in enumerate(batch["index"]):
        length = len(examples[index].tokens[0])
        assert batch["mask"][row, 0].sum() == length - 1
        assert (batch["tokens"][row, 0, :length] == index).all()
        assert (batch["tokens"][row, 0, length:] == 0).all()
        assert batch["label"][row] == examples[index].label
      np.testing.assert_array_equal(batch["reference"][:, 0], batch["index"])
  assert orders[0] != orders[1]
  in_order = Batches(examples, batch_size=11, max_length=50)
  [batch] = in_order.epoch()
  assert batch["index"].tolist() == [0, 3, 4, 5, 8, 9, 2, 7, 1, 6, 10]


def test_the_state_is_the_next_batch():
  examples = examples_of([3, 4, 5, 6, 7])
  batches = Batches(examples, batch_size=2, max_length=16, seed=0)
  expected = [next(batches) for _ in range(7)]
  other = Batches(examples, batch_size=2, max_length=16, seed=0)
  next(other)
  state = other.get_state()
  assert state == json.loads(json.dumps(state))
  again = Batches(examples, batch_size=2, max_length=16, seed=0)
  again.set_state(state)
  for batch, want in zip(again, expected[1:]):
    for name in want:
      np.testing.assert_array_equal(batch[name], want[name])
  assert next(itertools.islice(again, 1))["tokens"].shape == (2, 1, 16)


def test_lines_are_held_out_whole():
  examples = [e._replace(line=1 + i // 2) for i, e in enumerate(examples_of([3] * 20))]
  train, held_out = split_examples(examples, 0.2, seed=1)
  lines = {e.line for e in held_out}
  assert len(lines) == 2 and len(held_out) == 4 and not lines & {e.line for e in train}
  assert split_examples(examples, 0.0, seed=1) == (examples, [])
  assert len(split_examples(examples, 0.001, seed=1)[1]) == 2
  with pytest.raises(UsageError, match="eval_share=0.99 leaves nothing of 10 lines"):
    split_examples(examples, 0.99, seed=1)
