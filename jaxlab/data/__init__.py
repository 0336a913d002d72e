"""Data sources and synthetic tasks."""

from jaxlab.data.annotated_preferences import (
  AggregatedPreferences,
  AnnotatedPairs,
  OrientedPairs,
  aggregate_preferences,
  annotated_pairs,
  orient_pairs,
  ratings_to_strength,
)
from jaxlab.data.batches import BatchIterator, batch_iterator, stack_batches
from jaxlab.data.causal_reviews import (
  REVIEW_CONCEPTS,
  REVIEW_VOCAB_SIZE,
  ReviewBatch,
  intervene_reviews,
  noisy_review_edit,
  sample_reviews,
)
from jaxlab.data.chat_templates import render_chat
from jaxlab.data.corrupted import CorruptedImages, load_corrupted_folders, load_corrupted_images
from jaxlab.data.deceptive_prompts import (
  CATEGORIES,
  PROMPT_WORDS,
  PromptBatch,
  add_think_twice,
  make_prompts,
)
from jaxlab.data.deployment_prompts import (
  ConditionPrompts,
  DeploymentBatch,
  DeploymentPromptConfig,
  ParsedDeployment,
  condition_prompts,
  deployment_batch,
  document_batch,
  parse_deployment,
)
from jaxlab.data.dialogue import DialogueBatch, DialogueConfig, dialogue_batch, dialogue_reward
from jaxlab.data.epoch_curves import load_epoch_curves
from jaxlab.data.factoids import (
  Factoids,
  FactWorld,
  ReliabilityDocuments,
  reliability_answers,
  reliability_documents,
  sample_fact_world,
  sample_factoids,
)
from jaxlab.data.feature_noise import PatchData, sample_patches
from jaxlab.data.grid_scenes import SceneBatch, sample_grid_scenes
from jaxlab.data.image_pairs import DigitImages, ImagePairs, digit_images, digit_pairs, pool_pixels
from jaxlab.data.learning_curves import (
  AcceptedCurves,
  LearningCurveBatch,
  denormalize_curve,
  normalize_curve,
  sample_accepted_curves,
  sample_curve_params,
  sample_learning_curves,
)
from jaxlab.data.mnist1d import Signals, generate_mnist1d, load_mnist1d
from jaxlab.data.overlapping_classes import (
  OverlappingGaussians,
  PairedNoise,
  paired_label_noise,
  sample_overlapping_gaussians,
)
from jaxlab.data.paraphrases import (
  ParaphraseBatch,
  ParaphraseConfig,
  Paraphrases,
  PreferencePairs,
  paraphrase_batch,
  paraphrase_pairs,
  response_class,
)
from jaxlab.data.preference_bandits import PreferenceBandit, preference_bandit
from jaxlab.data.preference_files import (
  PreferencePair,
  RatedResponse,
  load_preferences,
  load_ratings,
)
from jaxlab.data.prompt_variants import (
  Prompts,
  RuleTasks,
  draw_demonstrations,
  label_words,
  render_prompts,
  sample_rule_tasks,
  word_vectors,
)
from jaxlab.data.reasoning import (
  ChainBatch,
  ModularChainConfig,
  MultiplicationBatch,
  MultiplicationData,
  ParsedChain,
  check_steps,
  modular_chain_batch,
  multiplication_dataset,
  parse_chain,
)
from jaxlab.data.recorded_curves import LearningCurves, load_lcdb
from jaxlab.data.records import FileRecord, read_records
from jaxlab.data.regression_tables import RegressionTable, load_regression_table
from jaxlab.data.seeded import SeededBatches, draw_key_data, prior_batches
from jaxlab.data.shape_scenes import Scenes, sample_shape_scenes
from jaxlab.data.solutions import unique_correct
from jaxlab.data.sound_events import SOUND_EVENTS, sample_sound_events
from jaxlab.data.sources import Source, as_arrays, load_source, prepare, source_names
from jaxlab.data.splits import FewShotSplit, MismatchSplit, few_shot_split, mismatch_split
from jaxlab.data.spurious_regression import RotatedDigits, rotated_digits
from jaxlab.data.tokenizers import (
  EncodedChat,
  PaddedSequences,
  Tokenizer,
  encode_chat,
  load_tokenizer,
  pad_sequences,
)
from jaxlab.data.tone_speech import (
  SPEECH_VOCAB_SIZE,
  TONE_BANDS,
  Utterances,
  sample_utterances,
)

__all__ = [
  "AcceptedCurves",
  "add_think_twice",
  "aggregate_preferences",
  "AggregatedPreferences",
  "annotated_pairs",
  "AnnotatedPairs",
  "as_arrays",
  "batch_iterator",
  "BatchIterator",
  "CATEGORIES",
  "ChainBatch",
  "check_steps",
  "condition_prompts",
  "ConditionPrompts",
  "CorruptedImages",
  "denormalize_curve",
  "deployment_batch",
  "DeploymentBatch",
  "DeploymentPromptConfig",
  "dialogue_batch",
  "dialogue_reward",
  "DialogueBatch",
  "DialogueConfig",
  "digit_images",
  "digit_pairs",
  "DigitImages",
  "document_batch",
  "draw_demonstrations",
  "draw_key_data",
  "encode_chat",
  "EncodedChat",
  "Factoids",
  "FactWorld",
  "few_shot_split",
  "FewShotSplit",
  "FileRecord",
  "generate_mnist1d",
  "ImagePairs",
  "intervene_reviews",
  "label_words",
  "LearningCurveBatch",
  "LearningCurves",
  "load_corrupted_folders",
  "load_corrupted_images",
  "load_epoch_curves",
  "load_lcdb",
  "load_mnist1d",
  "load_preferences",
  "load_ratings",
  "load_regression_table",
  "load_source",
  "load_tokenizer",
  "make_prompts",
  "mismatch_split",
  "MismatchSplit",
  "modular_chain_batch",
  "ModularChainConfig",
  "multiplication_dataset",
  "MultiplicationBatch",
  "MultiplicationData",
  "noisy_review_edit",
  "normalize_curve",
  "orient_pairs",
  "OrientedPairs",
  "OverlappingGaussians",
  "pad_sequences",
  "PaddedSequences",
  "paired_label_noise",
  "PairedNoise",
  "paraphrase_batch",
  "paraphrase_pairs",
  "ParaphraseBatch",
  "ParaphraseConfig",
  "Paraphrases",
  "parse_chain",
  "parse_deployment",
  "ParsedChain",
  "ParsedDeployment",
  "PatchData",
  "pool_pixels",
  "preference_bandit",
  "PreferenceBandit",
  "PreferencePair",
  "PreferencePairs",
  "prepare",
  "prior_batches",
  "PROMPT_WORDS",
  "PromptBatch",
  "Prompts",
  "RatedResponse",
  "ratings_to_strength",
  "read_records",
  "RegressionTable",
  "reliability_answers",
  "reliability_documents",
  "ReliabilityDocuments",
  "render_chat",
  "render_prompts",
  "response_class",
  "REVIEW_CONCEPTS",
  "REVIEW_VOCAB_SIZE",
  "ReviewBatch",
  "rotated_digits",
  "RotatedDigits",
  "RuleTasks",
  "sample_accepted_curves",
  "sample_curve_params",
  "sample_fact_world",
  "sample_factoids",
  "sample_grid_scenes",
  "sample_learning_curves",
  "sample_overlapping_gaussians",
  "sample_patches",
  "sample_reviews",
  "sample_rule_tasks",
  "sample_shape_scenes",
  "sample_sound_events",
  "sample_utterances",
  "SceneBatch",
  "Scenes",
  "SeededBatches",
  "Signals",
  "SOUND_EVENTS",
  "Source",
  "source_names",
  "SPEECH_VOCAB_SIZE",
  "stack_batches",
  "Tokenizer",
  "TONE_BANDS",
  "unique_correct",
  "Utterances",
  "word_vectors",
]


def __dir__():
  return __all__
