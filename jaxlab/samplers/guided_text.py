"""Nudging of models that have different tokenizers: they share only the text, word by word."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxlab._checks import check_at_least, check_range

# A repeated block or suffix must be this long to count as a loop of the model.
_REPEATED_WORDS, _REPEATED_CHARACTERS = 5, 30
_MOST_REPEATS = 3


class Completion(NamedTuple):
  """What a model writes after a prompt, greedily.

  Attributes:
    tokens: texts of the tokens, which join to the text; without the token that ends it.
    top_probs: probability of the best token at each place, one per token.
    finished: whether the model ended the text itself.
  """

  tokens: Sequence[str]
  top_probs: Sequence[float]
  finished: bool


class TextModel(NamedTuple):
  """A language model as a function of text.

  Attributes:
    complete: `(prompt, max_tokens) -> Completion` of at most so many tokens.
  """

  complete: Callable[[str, int], Completion]


class NudgedText(NamedTuple):
  """A text that two models wrote.

  Attributes:
    text: the text, without the prompts.
    nudging_words: what the nudging model wrote, round by round.
    stop_reason: "finished" if the nudging model ended the text, else "max_new_tokens",
      "max_rounds", or "repeated_words" if it wrote the same in four rounds on end.
  """

  text: str
  nudging_words: tuple[str, ...]
  stop_reason: str


def nudged_generate_text(
  base: TextModel,
  nudging: TextModel,
  base_prompt: str,
  nudging_prompt: str,
  *,
  max_new_tokens: int = 512,
  top_prob_threshold: float = 0.4,
  look_ahead: int = 16,
  max_rounds: int = 150,
) -> NudgedText:
  """Writes with a base model, and with a small aligned model where the base is uncertain.

  A round begins with a completion by the nudging model. If it ends there, the text ends. Else its
  first word is taken, and every further one until the base model would write the same or is
  certain; the last word, which may be cut, begins the next round instead. The base model then goes
  on until it is uncertain, ends, or repeats more than five words of the text. A repeated suffix of
  30 characters or more is removed in the end.

  Words are separated by single spaces. `nudged_decode` is the same for one vocabulary, in one
  compiled program, apart from the look-ahead: there the nudging model ends a text only once it is
  its turn.

  Args:
    base: the base model.
    nudging: the small aligned model.
    base_prompt: the base model's prompt.
    nudging_prompt: the nudging model's prompt, such as the same in a chat template.
    max_new_tokens: most tokens of both models together, at least 1.
    top_prob_threshold: probability of its best token below which the base model is uncertain, in
      [0, 1].
    look_ahead: tokens of one completion, at least 1.
    max_rounds: most rounds, at least 1.

  Returns:
    The `NudgedText`.

  Raises:
    ValueError: if an option lies outside its range, or a completion has more tokens than asked for
      or another number of probabilities.

  Reference: Fei et al., Nudging: Inference-time Alignment via Model Collaboration, ACL 2025,
  algorithm 1, https://arxiv.org/abs/2410.09300.
  """
  check_at_least(1, max_new_tokens=max_new_tokens, look_ahead=look_ahead, max_rounds=max_rounds)
  check_range("top_prob_threshold", top_prob_threshold, "[0, 1]")
  text, left, rounds, reason = "", max_new_tokens, [], "max_rounds"
  repeats = 0
  for _ in range(max_rounds):
    proposal = _ask(nudging, "nudging", nudging_prompt + text, min(look_ahead, left))
    if proposal.finished:
      words = "".join(proposal.tokens)
      text, reason = text + words, "finished"
      rounds += [words] * bool(words)
      break
    words, start = _accepted_words(
      "".join(proposal.tokens), base, base_prompt + text, min(look_ahead, left), top_prob_threshold
    )
    repeats = repeats + 1 if rounds and words == rounds[-1] else 0
    if repeats == _MOST_REPEATS:
      reason = "repeated_words"
      break
    rounds.append(words)
    text += words
    left -= _num_tokens(proposal.tokens, words)
    if start is not None and left > 0:
      text, left = _continue(base, base_prompt, text, start, left, look_ahead, top_prob_threshold)
    if left <= 0:
      reason = "max_new_tokens"
      break
  return NudgedText(_without_repeated_suffix(text), tuple(rounds), reason)


def _ask(model: TextModel, name: str, prompt: str, max_tokens: int) -> Completion:
  completion = model.complete(prompt, max_tokens)
  num_tokens, num_probs = len(completion.tokens), len(completion.top_probs)
  if num_tokens > max_tokens or num_probs != num_tokens:
    raise ValueError(
      f"{name} must complete at most {max_tokens} tokens, each with a probability, got "
      f"{num_tokens} tokens and {num_probs} probabilities."
    )
  return completion


def _accepted_words(
  proposal: str, base: TextModel, prompt: str, max_tokens: int, threshold: float
) -> tuple[str, Completion | None]:
  """The words before the base model takes over, and its completion if it does."""
  indent = " " * (len(proposal) - len(proposal.lstrip(" ")))
  first, *others = proposal.lstrip(" ").split(" ")
  accepted = indent + first
  for i, word in enumerate(others):
    if word:  # Not between two spaces.
      start = _ask(base, "base", prompt + accepted, max_tokens)
      if not start.tokens:  # The base model would end here.
        return accepted, None
      if f" {word}".startswith(start.tokens[0]) or not start.top_probs[0] < threshold:
        return accepted, start
    if i < len(others) - 1:
      accepted += f" {word}"
  return accepted, None


def _num_tokens(tokens: Sequence[str], text: str) -> int:
  """How many tokens the first words of a completion take; at least 1, so that rounds end."""
  length = 0
  for count, token in enumerate(tokens, 1):
    length += len(token)
    if length >= len(text):
      return count
  return max(len(tokens), 1)


def _continue(
  base: TextModel,
  prompt: str,
  text: str,
  block: Completion,
  left: int,
  look_ahead: int,
  threshold: float,
) -> tuple[str, int]:
  """The text after the base model has gone on, and how many tokens are left."""
  taken = 1  # The token at which it took over.
  text, left = text + block.tokens[0], left - 1
  while True:
    tokens = block.tokens[taken:]
    kept = next(
      (i for i, prob in enumerate(block.top_probs[taken:]) if prob < threshold), len(tokens)
    )
    kept = min(kept, left)
    new = "".join(tokens[:kept])
    if len(new.split(" ")) > _REPEATED_WORDS and new in text:
      return text, left
    text, left = text + new, left - kept
    if kept < len(tokens) or block.finished or left == 0 or not block.tokens:
      return text, left
    block, taken = _ask(base, "base", prompt + text, min(look_ahead, left)), 0


def _without_repeated_suffix(text: str) -> str:
  """Removes the longest suffix that directly follows a copy of itself, until there is none."""
  for length in range(len(text) // 2, _REPEATED_CHARACTERS - 1, -1):
    if text[-length:] == text[-2 * length : -length]:
      return _without_repeated_suffix(text[:-length])
  return text
