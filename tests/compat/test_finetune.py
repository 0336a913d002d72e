"""What transformers made is fine-tuned, and transformers and peft load what comes out."""

import json

import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from jaxlab.commands import finetune, program  # noqa: E402
from jaxlab.models import load_pretrained  # noqa: E402

ROWS = [{"prompt": f"{i}+{i}=", "response": str(2 * i)} for i in range(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A random model and a tokenizer of characters, both saved by transformers."""
  directory = tmp_path_factory.mktemp("finetune")
  words = ["<unk>", "<s>", "</s>", *"0123456789+="]
  core = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
  )
  tokenizer.save_pretrained(directory / "start")
  config = transformers.LlamaConfig(
    vocab_size=len(words),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    bos_token_id=1,
    eos_token_id=2,
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(config).save_pretrained(directory / "start")
  (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return directory


@pytest.mark.parametrize("rank", [0, 4])
def test_a_directory_goes_in_and_comes_out(made, rank):
  output = made / f"rank{rank}"
  flags = [f"--checkpoint={made / 'start'}", f"--data={made / 'data.jsonl'}", f"--output={output}"]
  flags += [f"--lora_rank={rank}", "--learning_rate=0.01", "--steps=6", "--batch_size=2"]
  flags += ["--eval_share=0", "--data_parallel=1"]
  assert program.execute(finetune, ["finetune", *flags]) == 0

  tokens = np.asarray(transformers.AutoTokenizer.from_pretrained(output)("1+1=2")["input_ids"])[
    None
  ]
  ours = load_pretrained(output)
  logits = np.asarray(ours.model.apply({"params": ours.params}, tokens).logits)

  def their_logits(model):
    with torch.no_grad():
      return model.eval()(torch.tensor(tokens)).logits.numpy()

  start = transformers.AutoModelForCausalLM.from_pretrained(made / "start")
  assert np.abs(their_logits(start) - logits).max() > 1e-2
  theirs = transformers.AutoModelForCausalLM.from_pretrained(output)
  np.testing.assert_allclose(logits, their_logits(theirs), atol=1e-4)
  assert (output / "adapter").exists() == (rank > 0)
  if rank:
    adapted = peft.PeftModel.from_pretrained(start, output / "adapter")
    np.testing.assert_allclose(logits, their_logits(adapted), atol=1e-4)
