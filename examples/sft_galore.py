"""Supervised fine-tuning with TRL: the GaLore example of the Hugging Face blog, with frugalore's optimizer.

    pip install trl datasets
    python examples/sft_galore.py        # a tiny Mistral on local text, no download
    python examples/sft_galore.py --model mistralai/Mistral-7B-v0.1 --dataset imdb --bf16 --per-layer

What differs from the blog's script is marked "optim": there the arguments are

    optim="galore_adamw", optim_target_modules=["attn", "mlp"], optim_args="rank=64, ..."
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import datasets
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from frugalore.integrations.transformers import FrugaloreCallback, trainer_optimizer

TINY_MISTRAL = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def local_text(files: int = 60) -> datasets.Dataset:
    """A text column from the Python standard library's own source."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    texts = [path.read_text("utf-8", errors="ignore") for path in paths]
    return datasets.Dataset.from_dict(
        {"text": [text[i : i + 1500] for text in texts for i in range(0, len(text), 1500)]}
    )


def local_tokenizer(data: datasets.Dataset) -> transformers.PreTrainedTokenizerFast:
    """Byte-pair encoding, trained on the spot."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(data["text"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a name or folder; default: a tiny Mistral with random weights")
    parser.add_argument("--dataset", help="with a column 'text'; default: the standard library's source")
    parser.add_argument("--optimizer", default="galore_adamw", help="a name of trainer_optimizer")
    parser.add_argument("--per-layer", action="store_true", help="free each gradient during backward")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--out", default="runs/sft")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    arguments = parser.parse_args()

    transformers.set_seed(0)
    data = datasets.load_dataset(arguments.dataset, split="train") if arguments.dataset else local_text()
    if arguments.model:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model)
    else:
        tokenizer = local_tokenizer(data)
        config = transformers.MistralConfig(vocab_size=len(tokenizer), **TINY_MISTRAL)
        model = transformers.MistralForCausalLM(config)

    args = trl.SFTConfig(
        output_dir=arguments.out,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.accumulation,
        learning_rate=1e-2 if arguments.model is None else 2e-5,
        optim_target_modules=["attn", "mlp"],  # optim
        optim_args="rank=64, update_proj_gap=50, scale=0.25",  # optim
        logging_steps=10,
        save_steps=max(1, arguments.steps // 2),
        max_length=256,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.model is not None,
        dataset_text_field="text",
        report_to=[],
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=trainer_optimizer(  # optim
            arguments.optimizer, args=args, per_layer=arguments.per_layer, seed=0
        ),
        callbacks=[FrugaloreCallback()],
    )
    trainer.train(resume_from_checkpoint=arguments.resume or None)


if __name__ == "__main__":
    main()
