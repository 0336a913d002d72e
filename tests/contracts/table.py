"""The contract table: calls of every public function, room by room."""

from tests.contracts import (
  algorithms,
  augment,
  data,
  losses,
  metrics,
  models,
  samplers,
  training,
  uncertainty,
  weights,
)

ROOMS = {
  module.__name__.rpartition(".")[2]: module.TABLE
  for module in (
    algorithms,
    augment,
    data,
    losses,
    metrics,
    models,
    samplers,
    training,
    uncertainty,
    weights,
  )
}

# Reason -> functions that take or return no arrays of a computation.
EXEMPT = {
  "reads or writes files": """
    data.batch_iterator data.digit_images data.load_corrupted_folders data.load_corrupted_images
    data.load_epoch_curves data.load_lcdb data.load_mnist1d data.load_preferences data.load_ratings
    data.load_regression_table data.load_series data.load_source data.load_tokenizer
    data.load_wav_folders data.prepare data.read_records models.load_adapter models.load_pfn
    models.load_pretrained models.load_vision_checkpoint models.save_adapter models.save_pfn
    models.save_pretrained models.save_vision_checkpoint training.fingerprint training.fit
    training.read_jsonl training.restore_params training.resume training.write_all
  """,
  "computes on the host, by NumPy or on texts": """
    algorithms.select_kernel_features augment.extract_choice augment.mel_filterbank
    data.apply_noise_matrix data.as_arrays data.conditional_probability
    data.cross_validated_probabilities data.d_separated data.draw_key_data data.encode_chat
    data.few_shot_split data.generate_mnist1d data.graph_distances data.joint_distribution
    data.local_documents data.long_tailed_counts data.long_tailed_indices
    data.marginal_probabilities data.mismatch_split data.negative_scaffold data.pad_sequences
    data.pairwise_mutual_information data.prior_batches data.random_bayes_net
    data.reasoning_scaffold data.region_noise data.render_chat data.select_held_out_pairs
    data.source_names data.stack_batches data.unique_correct metrics.in_context_regime
    metrics.plot_cost_accuracy metrics.plot_reliability metrics.plot_stream_error
    metrics.required_inductive_bias models.logits_from_hf models.params_from_hf
    models.params_to_hf models.scattering_kernels
    samplers.assign_buckets samplers.bucket_batches samplers.compiled_memory_bytes
    samplers.effective_duration samplers.estimate_duration_bins
    samplers.estimate_duration_token_bins samplers.merge_equal_buckets samplers.nudged_generate_text
    samplers.padding_fraction samplers.search_batch_size samplers.search_batch_size_linear
    training.build_evaluate
  """,
  "gives numbers, a module or a configuration": """
    algorithms.adapt_regime algorithms.norm_affine_only algorithms.prior_fitting_optimizer
    algorithms.scaled_learning_rate algorithms.transformer_peak_learning_rate
    metrics.accessible_state_size models.add_tokens
    models.config_from_hf models.config_to_hf models.decoder_config models.flops_per_token
    models.num_parameters models.resnet18 models.resnet50 models.resnext29 models.resnext50
    models.rotary_frequencies models.stage_costs models.wide_resnet28_10 models.wide_resnet50_2
    samplers.flax_decode_fns training.num_params uncertainty.curve_priors
  """,
  "places arrays and programs on devices": """
    training.data_parallel training.initialize_multihost training.make_mesh training.over_seeds
    training.replicate training.shard_batch training.shard_params
  """,
}
