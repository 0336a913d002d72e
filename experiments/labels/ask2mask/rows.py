"""The rows of the table: what each pretraining goes by, and how all of them are evaluated."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics
from sklearn import cluster

from experiments.kit.train import adamw_cosine, train
from experiments.labels.ask2mask import masks, networks
from experiments.labels.ask2mask.masks import SCORES
from experiments.labels.ask2mask.networks import Encoder
from experiments.labels.ask2mask.speech import MATCHED, MISMATCHED, SETS, SILENCE, draw, inside
from jaxlab import metrics

NONE, RANDOM, HALF = "no pretraining", "random", "random, surer half of utterances"
FRAMES, WEIGHTS, BOTH = "sure frames", "random, sure utterances", "sure frames, sure utterances"
UNSURE, LOUD, SOUNDING = "unsure frames", "loud frames", "both, without silence"
BY_CTC, ORACLE, LABELS = "both, by a CTC scorer", "both, by the truth", "labels of the scorer"
ERROR, VALIDATION = "token error rate", "validation error"
SCORER, ENERGY, AUROC = "scorer", "energy", "AUROC of clean frames"
_LOOK_EVERY = 4  # Of the utterances, to see what is masked in them.


def _row(score: str | None = None, *, weighted=False, half=False, learns_labels=False) -> dict:
  """The numbers of a row; without a score, starts are random."""
  numbers = {"weighted": weighted, "half": half, "learns_labels": learns_labels}
  return {"score": SCORES.index(score or "confidence"), "guided": score is not None, **numbers}


# What `evaluate` takes of every row, but the speech and the rate.
TABLE = {
  RANDOM: _row(),
  HALF: _row(half=True),
  FRAMES: _row("confidence"),
  WEIGHTS: _row(weighted=True),
  BOTH: _row("confidence", weighted=True),
  UNSURE: _row("doubt"),
  LOUD: _row("energy"),
  SOUNDING: _row("confidence in sounds", weighted=True),
  BY_CTC: _row("CTC confidence", weighted=True),
  ORACLE: _row("truth", weighted=True),
  LABELS: _row(learns_labels=True),
}
PLACES = [*((MISMATCHED, name) for name in TABLE), (MATCHED, RANDOM), (MATCHED, BOTH)]


def prepare(config, key: chex.PRNGKey) -> dict[str, Any]:
  """Trains the scorer, and a network on transcripts alone, which is the other scorer.

  Gives what they say of the frames of `SETS`, and what is known of these, `[2, n, T]`; the frames
  that codes are fitted to; and what both score.
  """
  speech, module = draw(config, jax.random.fold_in(key, 1)), Encoder(config)
  scorer, chosen = networks.learn_labels(config, key, speech, of_frames=True)
  alone, scores = _fine_tuned(config, key, speech)

  def hear(part):
    logits, ctc = (module.apply({"params": params}, *part[:2]) for params in (scorer, alone))
    return {
      "confidence": metrics.frame_confidence(logits),
      "CTC confidence": metrics.frame_confidence(ctc),
      "sounds": jnp.argmax(logits, axis=-1),
      "energy": jnp.linalg.norm(part.frames, axis=-1),
      "is_corrupted": part.is_corrupted,
      "inside": inside(*part[:2]),
    }

  accuracy = networks.frame_accuracy(module, scorer, speech["test"])
  return {
    "heard": jax.tree.map(lambda *x: jnp.stack(x), *(hear(speech[name]) for name in SETS)),
    "labeled": (speech["labeled"].frames, inside(*speech["labeled"][:2])),
    SCORER: {"frame accuracy": accuracy, "chosen/learning rate": chosen["learning rate"]},
    NONE: scores,
  }


def _fine_tuned(config, key, speech, pretrained=None):
  params, chosen = networks.learn_labels(config, key, speech, pretrained=pretrained)
  error = networks.token_errors(Encoder(config), params, speech["test"])
  scores = {ERROR: error, VALIDATION: -chosen["validation"]}
  return params, scores | {"chosen/tuning rate": chosen["learning rate"]}


def fit_codes(config, frames: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Centers of the codes, `[codes, 16]`, by k-means of the frames of a seed that are inside."""
  fitted = cluster.KMeans(config.num_codes, n_init=4, random_state=0).fit(frames[inside])
  return fitted.cluster_centers_


def areas_under_curves(heard: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """How well scores, and energy in its better direction, tell clean from corrupted frames."""
  of = {name: values[SETS.index(MISMATCHED)] for name, values in heard.items()}
  clean = ~of["is_corrupted"][of["inside"]]
  scores = {ENERGY: "energy", SCORER: "confidence", BY_CTC: "CTC confidence"}
  areas = {
    name: sklearn.metrics.roc_auc_score(clean, of[score][of["inside"]])
    for name, score in scores.items()
  }
  areas[ENERGY] = max(areas[ENERGY], 1 - areas[ENERGY])
  return {name: {AUROC: np.array(area)} for name, area in areas.items()}


def evaluate(config, key: chex.PRNGKey, inputs, setting) -> dict[str, jax.Array]:
  """Pretrains by a row of the table, fine-tunes, and transcribes test utterances.

  The inputs are centers of the codes, and what was `heard` by the scorers; the setting is a row of
  `TABLE`, with the place in `SETS` as `speech`, and the `rate`.
  """
  centers, heard = inputs
  parts, place = draw(config, jax.random.fold_in(key, 1)), setting["speech"]
  speech = jax.tree.map(lambda *x: jnp.stack(x)[place], *(parts[name] for name in SETS))
  heard = {name: x[place] for name, x in heard.items()}
  guide, module = masks.guide(speech, heard, setting), Encoder(config, config.num_codes)
  learns_labels = setting["learns_labels"]
  codes = jnp.where(learns_labels, heard["sounds"], nearest(speech.frames, centers))

  def draw_mask(key, scores, lengths):
    return masks.draw_mask(config, key, scores, lengths, guided=setting["guided"])

  rows = speech.frames, speech.lengths, codes, guide.scores, guide.weights
  sizes = {"num_steps": config.pretraining_steps, "batch_size": config.batch_size}
  optimizer = adamw_cosine(setting["rate"], config.pretraining_steps)
  loss = networks.masked_loss(module, draw_mask, learns_labels=learns_labels)
  rows = jax.tree.map(lambda x: x[guide.order], rows)
  trained = train(key, module, loss, optimizer, rows, **sizes)
  _, scores = _fine_tuned(config, key, parts, trained.params)

  # What is masked in some utterances, and how well it is predicted.
  order = guide.order[::_LOOK_EVERY]
  some, codes, frame_scores = jax.tree.map(lambda x: x[order], (speech, codes, guide.scores))
  mask = draw_mask(jax.random.fold_in(key, 2), frame_scores, some.lengths)
  logits = module.apply({"params": trained.params}, *some[:2], mask)
  share = lambda of: jnp.sum(of * mask) / jnp.maximum(jnp.sum(mask), 1)  # noqa: E731
  return scores | {
    "masked": jnp.sum(mask) / jnp.sum(inside(*some[:2])),
    "silent of the masked": share(some.sounds == SILENCE),
    "corrupted of the masked": share(some.is_corrupted),
    "masked frames predicted right": share(jnp.argmax(logits, axis=-1) == codes),
    "bad_step": trained.bad_step,
  }


def nearest(frames: chex.Array, centers: chex.Array) -> jax.Array:
  """Number of the nearest center of each frame, int32 `[..., T]`."""
  squares = jnp.sum(jnp.square(centers), axis=-1)
  return jnp.argmin(squares - 2 * frames @ jnp.asarray(centers).T, axis=-1).astype(jnp.int32)
