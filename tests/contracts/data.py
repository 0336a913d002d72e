"""Calls of the synthetic tasks."""

import dataclasses

import numpy as np

from jaxlab.data import (
  DeploymentPromptConfig,
  DialogueConfig,
  FactWorld,
  ModularChainConfig,
  ParaphraseConfig,
  ReviewBatch,
  SceneBatch,
  TopicTextConfig,
)
from tests.contracts.calls import KEY, B, b, c, call, f, p, t, u

_PARENTS = np.array([[-1, -1], [0, -1], [0, 1], [2, -1]], np.int32)
_CHAINS = ModularChainConfig(num_terms=2)
_DIALOGUES = DialogueConfig(num_prompts=4, response_length=4, num_response_tokens=4)
_PARAPHRASES = ParaphraseConfig(num_prompts=2, paraphrases=2)
_DEPLOYMENT = DeploymentPromptConfig(num_requests=4, planted_gap=0.2)
_TOPICS = TopicTextConfig(num_classes=4, vocab_size=14, dim=4, length=5, topic_words=2)
_NEGATED = dataclasses.replace(_TOPICS, negation_rate=0.5)

_REVIEWS = ReviewBatch(c(B, 32), c(B, 4), c(B), c(B))
_SCENES = SceneBatch(f(B, 24, 24, 3), c(B, 9), c(B, 9), b(B, 9), c(B))

TABLE = {
  "ackley": call(f(B, 4)),
  "add_think_twice": call(c(B, 4)),
  "aggregate_preferences": call(c(B, 5), c(B)),
  "ambiguous_digit_batch": call(KEY, u(5, 2), c(5), batch_size=4),
  "annotated_pairs": call(KEY, num_pairs=4, num_features=2, num_domains=2),
  "booth": call(f(B, 2)),
  "check_steps": call(_CHAINS, c(B, 4), c(B, 1)),
  "condition_prompts": call(_DEPLOYMENT),
  "corrupt_segments": call(KEY, f(B, 8, 16), c(B)),
  "corrupt_segments:tones": call(KEY, f(B, 8, 16), c(B), foreign_tones=f(5, 2)),
  "denormalize_curve": call(u(B)).but(static="lower upper soft_lower soft_upper"),
  "dialogue_batch": call(KEY, _DIALOGUES, 2),
  "dialogue_reward": call(_DIALOGUES, c(B), c(B, 4)),
  "dialogue_reward:harmless": call(_DIALOGUES, c(B), c(B, 4), kind="harmless"),
  "digit_pairs": call(KEY, num_pairs=2, split="weak"),
  "deployment_batch": call(KEY, _DEPLOYMENT, 2),
  "document_batch": call(KEY, _DEPLOYMENT, 2),
  "draw_demonstrations": call(KEY, c(5), num_shots=2, exclude=np.array(1, np.int32)),
  "frozen_token_encoder": call(c(B, 5), b(B, 5)).but(
    use=lambda function, tokens, mask: function(_TOPICS)(tokens, mask)
  ),
  "gaussian_class_means": call(num_features=2, num_classes=4),
  "generate_noisy_examples": call(KEY, _TOPICS, num_per_class=2),
  "intervene_reviews": call(_REVIEWS, concept=1, value=2),
  "joint_log_prob": call(_PARENTS, u(4, 4), np.array([[0, 1, 0, 1]] * B, np.int32)),
  "label_descriptions": call(_TOPICS),
  "label_words": call(c(5)),
  "levy_n13": call(f(B, 2)),
  "make_prompts": call(KEY, _SCENES, category=None, deceptive=True).but(
    quiet="scenes", skip={"gradients": "integers"}
  ),
  "modular_chain_batch": call(KEY, _CHAINS, 2),
  "multi_optima": call(f(B, 1)),
  "multiplication_dataset": call(KEY, num_digits=1, num_train=4, num_test=4),
  "normalize_curve": call(f(B)).but(static="lower upper soft_lower soft_upper"),
  "noisy_review_edit": call(KEY, _REVIEWS, concept=1, value=c(B)),
  "orient_pairs": call(c(B)),
  "paired_label_noise": call(KEY, c(5), num_classes=4, noise_rate=0.2),
  "paraphrase_batch": call(KEY, _PARAPHRASES, 2),
  "paraphrase_pairs": call(KEY, _PARAPHRASES, num_pairs=2),
  "parse_chain": call(_CHAINS, c(B, 4)),
  "pool_pixels": call(f(B, 64)),
  "parse_deployment": call(_DEPLOYMENT, c(B, 4)),
  "preference_bandit": call(
    KEY, num_prompts=2, num_responses=4, num_features=2, num_covered=2, num_comparisons=5
  ),
  "proportional_noise_matrix": call(t(4), noise_rate=0.2),
  "ratings_to_strength": call(f(B), f(B)),
  "reliability_answers": call(num_people=4, num_attributes=2, num_values=5),
  "reliability_documents": call(
    KEY, num_documents=2, num_people=4, num_attributes=2, num_values=5, num_lines=2
  ),
  "render_prompts": call(c(2, 4), c(5, 2, 2, 4), c(5, 2, 2), template_ids=c(5)),
  "response_class": call(_PARAPHRASES, c(B, 4), c(B)),
  "rotated_digits": call(KEY, u(2, 8, 8)).but(static="spurious_prob max_degrees"),
  "sample_accepted_curves": call(KEY, batch_size=2, length=4),
  "sample_aligned_utterances": call(KEY, num_samples=2, max_digits=2, num_frames=10),
  "sample_bayes_net": call(KEY, _PARENTS, u(4, 4), num_samples=2),
  "sample_canvas": call(KEY, u(5, 8, 8), c(5), batch_size=2, num_objects=2, scale=(1.0, 1.5)),
  "sample_curve_params": call(KEY, batch_size=2),
  "sample_factor_task": call(KEY, f(4, 2), f(2), num_samples=5),
  "sample_gaussian_classes": call(KEY, num_samples=5, num_features=2, num_classes=2),
  "sample_grid_scenes": call(KEY, 2),
  "sample_fact_world": call(KEY, num_slots=2, slot_size=5, num_facts=4),
  "sample_fact_world:dense": call(KEY, num_slots=2, slot_size=2, num_facts=4),
  "sample_factoids": call(KEY, FactWorld(c(5, 2), p(5)), num_samples=4),
  "sample_learning_curves": call(KEY, batch_size=2, length=4),
  "sample_mixture_task": call(KEY, f(4, 2), c(4), num_samples=5),
  "sample_overlapping_gaussians": call(KEY, num_samples=4, num_classes=2, dim=2, separation=1.0),
  "sample_patches": call(KEY, num_samples=4, dim=5).but(
    static="rare_prob distractor_scale noise_std"
  ),
  "sample_reviews": call(KEY, num_samples=2),
  "sample_rule_tasks": call(
    KEY, num_tasks=2, vocab_size=8, sentence_length=4, num_classes=2, num_examples=4
  ),
  "sample_shape_scenes": call(KEY, num_samples=2, classes=(0, 1), size=8, clutter=1),
  "sample_tone_tables": call(KEY),
  "sample_topic_text": call(KEY, _TOPICS, c(B)),
  "sample_topic_text:negated": call(KEY, _NEGATED, c(B)),
  "sample_sound_events": call(KEY, c(B), sample_rate=4000, seconds=0.01).but(static="seconds"),
  "sample_utterances": call(KEY, num_samples=2, max_digits=2),
  "sinusoid": call(f(B, 1)),
  "word_vectors": call(vocab_size=4),
}
